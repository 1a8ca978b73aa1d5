"""The ways to have SAM-Audio in memory: for each configured model each precision, best first."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from coscheduler.config import SeparationSettings
from coscheduler.core.model import Line, LineBytes, Option
from coscheduler.engines.separation import footprint, hub, model
from coscheduler.engines.separation.model import ModelFolder
from coscheduler.engines.separation.text import TextEncoderFolder, open_text_encoder

MIB = 1024 * 1024
PRECISIONS = ("float32", "bfloat16", "int8")  # best first
# After a fork with the libraries imported: thread pools and kernels; on CUDA the context itself.
CONTEXT_BYTES = {"cpu": 24 * MIB, "cuda": 600 * MIB}
COPY_BYTES_PER_MS = 1_000_000
CPU_FLOP_PER_MS_THREAD = 20_000_000
CUDA_FLOP_PER_MS = 10_000_000_000


@dataclass(frozen=True)
class Machine:
    """What runs it; the speeds that follow are estimates, refined by whoever measures."""

    device: torch.device
    threads: int

    @property
    def flop_per_ms(self) -> int:
        """Floating point operations in a millisecond."""
        cuda = self.device.type == "cuda"
        return CUDA_FLOP_PER_MS if cuda else CPU_FLOP_PER_MS_THREAD * self.threads

    def cohort(self, streamed_bytes: int, window_flop: int) -> int:
        """How many windows a pass over the layers serves: the smallest G for which computing hides
        copying, G * window_flop / flop_per_ms >= streamed_bytes / COPY_BYTES_PER_MS; at least 1.

        `streamed_bytes` are copied in each pass, `window_flop` are its operations for one window.
        """
        copying = streamed_bytes * self.flop_per_ms
        return max(1, -(-copying // (COPY_BYTES_PER_MS * window_flop)))


@dataclass(frozen=True)
class Source:
    """A model folder with the text encoder that fits it; `name` is for people."""

    name: str
    folder: ModelFolder
    text_encoder: TextEncoderFolder


def open_sources(settings: SeparationSettings) -> tuple[Source, ...]:
    """The configured models, best first; of repositories the cached files, nothing is fetched.

    Raises EngineFault MODEL_MISSING or MODEL_CORRUPT.
    """
    named = settings.models if settings.model == "auto" else (settings.model,)
    encoder = _local(settings.text_encoder, hub.TEXT_ENCODER_FILES)
    return tuple(
        open_source(_local(name, hub.MODEL_FILES), encoder, _title(name)) for name in named
    )


def open_source(folder: Path, text_encoder: Path, name: str = "") -> Source:
    """A model and its text encoder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    opened = model.open_folder(folder)
    return Source(
        name or folder.name, opened, open_text_encoder(text_encoder, opened.config.text_encoder.dim)
    )


def _local(name: Path | str, files: tuple[str, ...]) -> Path:
    return name if isinstance(name, Path) else hub.fetch(hub.parse(name), files, offline=True)


def _title(name: Path | str) -> str:
    return name.name if isinstance(name, Path) else hub.parse(name).name.rpartition("/")[2]


def options(
    sources: tuple[Source, ...], precisions: tuple[str, ...], window_ms: int, machine: Machine
) -> tuple[Option, ...]:
    """One option for each model and precision. A smaller model is a worse tier than any precision
    of a larger one.
    """
    return tuple(
        _option(source, index, precision, window_ms, machine, several=len(sources) > 1)
        for index, source in enumerate(sources)
        for precision in precisions
    )


def _option(
    source: Source, index: int, precision: str, window_ms: int, machine: Machine, several: bool
) -> Option:
    config = source.folder.config
    segments = source.folder.segments(precision)
    kept = [s for s in segments if s.name != model.WATERMARK]
    resident = sum(s.bytes for s in kept)
    streamed = sum(s.bytes for s in segments if footprint.is_layer(s) and s not in kept)
    cohort = machine.cohort(streamed, footprint.layers_flop(config, segments, window_ms))
    work = footprint.flop_per_second(config, segments)
    speed = machine.flop_per_ms
    return Option(
        name=f"{source.name}/{precision}" if several else precision,
        resident=(LineBytes(Line.WEIGHTS, resident),),
        run=footprint.run_lines(config, segments, source.text_encoder, window_ms, cohort),
        quality_tier=len(PRECISIONS) * index + PRECISIONS.index(precision),
        load_ms=resident // COPY_BYTES_PER_MS + 1,
        run_ms_per_second=work // speed + 1,
        slice_ms_max=footprint.slice_flop(config, segments, window_ms) // speed + 200,
        host_bytes=sum(s.bytes for s in segments),
        settings_json=json.dumps({"dtype": precision, "model": index, "cohort": cohort}),
    )


def reason(chosen: Option, offered: tuple[Option, ...]) -> str:
    """Why this one of several, in a sentence; empty where it is the best there is."""
    better = [option for option in offered if option.quality_tier < chosen.quality_tier]
    if not better:
        return ""
    return (
        f"Option {chosen.name} ({peak(chosen)} MiB at its peak) is the best that fitted the "
        f"memory; {better[0].name} takes {peak(better[0])} MiB."
    )


def peak(option: Option) -> int:
    """MiB of a whole window and more, without the context."""
    return -(-option.peak_bytes(3_600_000) // MIB)
