"""SAM-Audio behind the Engine protocol: one prompt, target and residual out."""

import json
import os
import time
from collections.abc import Generator

import torch
from torch.nn import functional as fn

from coscheduler import audio
from coscheduler.config import SeparationSettings, Settings
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Line,
    LineBytes,
    Lines,
    Option,
    Segment,
)
from coscheduler.engines.base import OnProgress, OutputFile, Slice, StageResult, Task
from coscheduler.engines.separation import choices, footprint, model, offer, output, request
from coscheduler.engines.separation.checkpoint import fingerprint
from coscheduler.engines.separation.choices import Source
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.pacing import numbers, paced
from coscheduler.engines.separation.request import Request
from coscheduler.engines.separation.resume import INTERVAL_MS, ResumePoints, key_of
from coscheduler.engines.separation.separate import Separated, Workplace, separate
from coscheduler.engines.separation.steps import Step
from coscheduler.engines.separation.text import WEIGHTS
from coscheduler.engines.streaming import heap
from coscheduler.engines.streaming.host_arrays import HostArrays
from coscheduler.errors import EngineFault, Refused
from coscheduler.stages import SeparateParameters

MIB = 1024 * 1024
MMAP_THRESHOLD_BYTES = MIB
TRIM_THRESHOLD_BYTES = 64 * MIB
KERNELS_MAX = 64  # compiled convolutions kept by oneDNN; the way out with its watermark needs most


class SeparationEngine:
    """One SAM-Audio model at a time, of one or several that are configured. The text encoder comes
    and goes within a stage.
    """

    name = EngineName.SEPARATION

    def __init__(self, settings: Settings, resume_interval_ms: int = INTERVAL_MS) -> None:
        """Raises Refused ENGINE_NOT_CONFIGURED without a [separation] section.

        `resume_interval_ms`: a point to go on from is kept no more often than this.
        """
        if settings.separation is None:
            raise Refused("ENGINE_NOT_CONFIGURED", "the config has no [separation] section")
        self._settings: SeparationSettings = settings.separation
        self._device_settings = settings.device
        self._prepared_dir = self._settings.prepared_dir or settings.data_dir / "prepared"
        self._loaded: LoadedModel | None = None
        self._source: Source | None = None
        self._cohort = 1
        self._reason = ""  # why not a better option
        self._load_ms = 0
        self._resume_interval_ms = resume_interval_ms

    @property
    def _device(self) -> torch.device:
        chosen = self._device_settings
        return torch.device("cpu") if chosen.device == "cpu" else torch.device("cuda", chosen.index)

    def describe(self) -> EngineDescription:
        """Options from config.json and the checkpoint's table; no data is read.

        Raises EngineFault MODEL_MISSING or MODEL_CORRUPT.
        """
        sources = choices.open_sources(self._settings)
        segments = sources[0].folder.segments(self._settings.precisions[0])
        return EngineDescription(
            engine=self.name,
            model=", ".join(source.name for source in sources),
            options=self._options(sources),
            context_bytes=offer.CONTEXT_BYTES[self._device.type],
            segments=tuple(
                Segment(s.name, s.bytes) for s in segments if s.name.startswith("layer.")
            ),
        )

    def start(self) -> None:
        """Set threads and heap, then run every kind of kernel once, so that thread pools, compiled
        kernels and library scratch belong to the context and not to the first stage.
        """
        # Read by oneDNN at its first kernel. Its default keeps 1024 of about 0.2 MiB each.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_MAX))
        torch.set_num_threads(self._device_settings.threads)
        heap.fix_thresholds(MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        _warm_up(self._device)
        self._give_back()

    @torch.inference_mode()
    def load(self, option: Option, on_progress: OnProgress) -> None:
        """Make the prepared file if it is not there, then copy the weights to the device.

        Raises EngineFault MODEL_MISSING, MODEL_CORRUPT, DISK_FULL, PREPARED_UNWRITABLE or
        OUT_OF_MEMORY; then nothing is held.
        """
        self.unload()
        begun = time.monotonic()
        chosen = json.loads(option.settings_json)
        sources = choices.open_sources(self._settings)
        source = sources[chosen["model"]]
        folder = source.folder
        prepared = folder.prepare(chosen["dtype"], self._prepared_dir, on_progress)
        try:
            self._loaded = model.load(
                folder.config,
                prepared,
                self._device,
                on_progress,
                kept=chosen["kept"],
                pinned_max=self._settings.pinned_max,
            )
        except (MemoryError, torch.OutOfMemoryError, OSError) as error:
            self._give_back()
            raise EngineFault(
                "OUT_OF_MEMORY",
                f"the device has no room for {option.name}: {error}",
                option=option.name,
                required_bytes=sum(line.bytes for line in option.resident),
            ) from None
        self._source, self._reason = source, offer.reason(option, self._options(sources))
        self._cohort = chosen["cohort"]
        self._load_ms = _ms_since(begun)

    @torch.inference_mode()
    def resize(self, option: Option) -> None:
        """Let as many layers stay as the option keeps; the others are streamed from now on. The
        windows of a cohort change with the next stage.

        Raises EngineFault NOT_LOADED or OUT_OF_MEMORY; then it is as it was.
        """
        loaded, chosen = self._loaded, json.loads(option.settings_json)
        if loaded is None:
            raise EngineFault("NOT_LOADED", "no option of the separation model is loaded")
        try:
            loaded.streamer.resize(chosen["kept"])
        except (MemoryError, torch.OutOfMemoryError, OSError) as error:
            if not loaded.streamer.is_open:
                raise
            raise EngineFault(
                "OUT_OF_MEMORY", f"no room for {option.name}: {error}", option=option.name
            ) from None
        finally:
            self._give_back()
        self._cohort = chosen["cohort"]

    @torch.inference_mode()
    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        """Separate `task.input_path` into target.wav and residual.wav, as long as the input.

        Goes on from `task.resume_dir` where an earlier attempt left something there; the result is
        the same, bit for bit. Raises EngineFault NOT_LOADED, DISK_FULL, WORK_FOLDER_UNUSABLE or
        OUTPUT_NOT_FINITE, InvalidInput AUDIO_TOO_SHORT, AUDIO_UNREADABLE, AUDIO_NOT_FINITE,
        SPAN_OUTSIDE, PROMPT_EMPTY or PROMPT_TOO_LONG.
        """
        if self._loaded is None or self._source is None:
            raise EngineFault("NOT_LOADED", "no option of the separation model is loaded")
        try:
            done = yield from paced(self._steps(self._loaded, self._source, task))
        finally:
            self._give_back()
        separated, clipped = done.result
        notes = (self._reason,) if self._reason else ()
        return StageResult(
            files=tuple(OutputFile(name, f"{name}.wav", "audio/wav") for name in output.NAMES),
            notes=notes + output.notes_on(separated, clipped),
            numbers={
                **numbers(separated, done.seconds, self._load_ms), "clipped_count": clipped,
            },
        )  # fmt: skip

    def unload(self) -> None:
        """Drop the weights; every layer's mapping goes at once."""
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None
        self._give_back()

    def held(self) -> Lines:
        """The resident weights, and the slots where layers are streamed."""
        if self._loaded is None:
            return ()
        weights = LineBytes(Line.WEIGHTS, self._loaded.bytes)
        slots = LineBytes(Line.SLOTS, self._loaded.streamer.slot_bytes)
        return (weights, slots) if slots.bytes else (weights,)

    def _options(self, sources: tuple[Source, ...]) -> tuple[Option, ...]:
        settings = self._settings
        machine = offer.Machine(
            self._device.type, self._device_settings.threads, settings.pinned_max
        )
        offered = choices.options(sources, settings.precisions, settings.window_ms, machine)
        return choices.with_files(offered, sources, self._prepared_dir)

    def _steps(
        self, loaded: LoadedModel, source: Source, task: Task
    ) -> Generator[Step, None, tuple[Separated, int]]:
        """Read, separate, write; the result and how many samples were clipped."""
        parameters = SeparateParameters.model_validate(dict(task.parameters))
        asked = request.from_parameters(parameters)
        rate_hz = loaded.config.audio_codec.sample_rate
        arrays = HostArrays(task.output_dir)
        limits = footprint.limits(loaded.config, self._settings.window_ms)
        place = Workplace(loaded, source.text_encoder, arrays, limits, self._cohort)

        def points_for(sha256: str) -> ResumePoints:
            key = self._resume_key(place, asked, sha256)
            return ResumePoints(task.resume_dir, key, self._resume_interval_ms)

        blocks = audio.mono_blocks(task.input_path, rate_hz)
        separated = yield from separate(place, blocks, asked, points_for)
        signals = yield from output.finish(separated, asked, arrays, rate_hz)
        clipped = yield from output.write(signals, asked.sample_rate_hz or rate_hz, task.output_dir)
        return separated, clipped

    def _resume_key(self, place: Workplace, asked: Request, sha256: str) -> str:
        """Of everything that the bits of a state depend on."""
        return key_of(
            {
                "request": asked.fields(),
                "samples": sha256,
                "model": place.model.identity,
                "text_encoder": fingerprint(place.text_encoder.folder / WEIGHTS),
                "limits": vars(place.limits),
                "device": str(place.model.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )

    def _give_back(self) -> None:
        heap.trim()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


def _warm_up(device: torch.device) -> None:
    """Every kind of operation once, in both precisions, large enough to wake all threads."""
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(1, 64, 512, dtype=dtype, device=device)
            y = fn.conv1d(x, x[:, :, :7].expand(64, 64, 7).contiguous(), padding=3)
            y = fn.conv_transpose1d(y, x[:, :, :4].expand(64, 64, 4).contiguous(), stride=2)
            z = fn.linear(y.transpose(1, 2), x[0, :, :64])
            heads = z.view(1, -1, 4, 16).transpose(1, 2)
            fn.scaled_dot_product_attention(heads, heads, heads)
        fn.group_norm(y.float(), 1)
        fn.rms_norm(z.float(), (64,))
        weight = torch.ones(64, 64, 7, device=device)
        for kernel in range(KERNELS_MAX):  # a full cache does not grow while a stage runs
            fn.conv1d(torch.ones(1, 64, 512 + kernel, device=device), weight)
