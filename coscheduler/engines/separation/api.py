"""`SamAudio`: load a model that fits a limit, encode a recording once, separate it many times."""

import json
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ByteSize, TypeAdapter, ValidationError

from coscheduler import audio, stages
from coscheduler.config import FLOAT16_REFUSED, default_data_dir
from coscheduler.core.model import Option, StageKind
from coscheduler.engines import hub
from coscheduler.engines.separation import (
    choices,
    footprint,
    model,
    output,
    request,
)
from coscheduler.engines.separation import (
    recording as recordings,
)
from coscheduler.engines.separation.choices import Source
from coscheduler.engines.separation.offer import CONTEXT_BYTES, PRECISIONS, Machine, reason
from coscheduler.engines.separation.recording import Recording
from coscheduler.engines.separation.separate import Separated, Workplace, separate_encoded
from coscheduler.engines.separation.steps import Progress, Step
from coscheduler.engines.streaming.host_arrays import HostArrays
from coscheduler.errors import InvalidInput, Refused

Samples = NDArray[np.float32]
OnProgress = Callable[[int, int, str], None]  # (done, total, what is being done)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Separation:
    """A result: float32 [N] each, full scale 1.0, mono. `score` is the ranking's, of the seed
    kept; `scores` are those of all seeds that were drawn. `notes` say what a listener would ask.
    """

    target: Samples
    residual: Samples
    sample_rate_hz: int
    seed: int
    score: float
    scores: dict[int, float]
    notes: tuple[str, ...]


class SamAudio:
    """One loaded model. Use it from one thread at a time; `close`, or leave a `with` block, to give
    the memory back. Every result is the same on the same machine, bit for bit.
    """

    def __init__(self, place: Workplace, option: Option, reason: str) -> None:
        """Use `load`."""
        self._place: Workplace | None = place
        self._lock = threading.Lock()
        self.option = option
        self.reason = reason
        self.sample_rate_hz = place.model.config.audio_codec.sample_rate

    @classmethod
    def load(
        cls,
        path_or_repo: Path | str,
        *,
        text_encoder: Path | str | None = None,
        device: str = "cpu",
        memory_limit: int | str | None = None,
        precision: Literal["float32", "bfloat16", "int8"] | None = None,
        window_ms: int = 30_000,
        prepared_dir: Path | None = None,
        scratch_dir: Path | None = None,
        revision: str | None = None,
        token: str | None = None,
        offline: bool = False,
        cache_dir: Path | None = None,
        endpoint: str | None = None,
    ) -> Self:
        """Load the best precision that fits `memory_limit` ("4 GiB" or bytes; None: float32), with
        as many layers of the transformer in memory as fit; the others are streamed.

        A folder, else a repository of the hub ("owner/name"), as `hub.fetch` takes it. The text
        encoder is a folder or repository too; None: `t5` or `text_encoder` in the model's folder,
        else the repository that config.json names. What is as long as a recording lies in nameless
        files below `scratch_dir` (None: the temporary folder). The limit counts weights, work and
        an estimate of the device context. Raises Refused NEVER_FITS or DEVICE_MISSING, InvalidInput
        PRECISION_REFUSED or MEMORY_LIMIT_INVALID, EngineFault as `hub.fetch` and the loader raise.
        """
        chosen_device = _device(device)
        wanted = _precisions(precision)
        limit = _bytes(memory_limit)

        def fetched(repository: str, files: tuple[str, ...], revision: str | None = None) -> Path:
            source = hub.parse(f"{repository}@{revision}" if revision else repository)
            return hub.fetch(
                source, files, offline=offline, token=token, cache_dir=cache_dir, endpoint=endpoint
            )

        source = _source(path_or_repo, text_encoder, revision, fetched)
        machine = Machine(chosen_device.type, torch.get_num_threads())
        offered = choices.options((source,), wanted, window_ms, machine)
        option = _best(offered, limit, chosen_device)
        folder = prepared_dir or default_data_dir() / "prepared"
        settings = json.loads(option.settings_json)
        prepared = source.folder.prepare(settings["dtype"], folder, _ignore)
        with torch.inference_mode():
            loaded = model.load(
                source.folder.config, prepared, chosen_device, _ignore, kept=settings["kept"]
            )
        limits = footprint.limits(source.folder.config, window_ms)
        arrays = HostArrays(scratch_dir or Path(tempfile.gettempdir()))
        place = Workplace(loaded, source.text_encoder, arrays, limits, settings["cohort"])
        return cls(place, option, reason(option, offered))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the weights back; calling it twice is allowed. Recordings and results stay."""
        if self._place is not None:
            self._place.model.close()
        self._place = None

    def encode(
        self,
        source: Path | str | Samples,
        sample_rate_hz: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Recording:
        """A file, or samples float32 [N] or [channels, N] at `sample_rate_hz` (None: the model's).

        Several channels become their mean. Raises InvalidInput AUDIO_UNREADABLE, AUDIO_NOT_FINITE
        or AUDIO_TOO_SHORT, Refused CLOSED.
        """
        place = self._open()

        def steps() -> Generator[Step, None, Recording]:
            config, limits = place.model.config, place.limits
            blocks = self._blocks(source, sample_rate_hz)
            samples = yield from recordings.read(config, place.arrays, blocks)
            windows = recordings.plan(config, limits, len(samples.mixture))
            progress = Progress(windows, limits, 0)
            features = yield from recordings.encode(
                place.model, place.arrays, limits, samples.mixture, progress
            )
            return Recording(samples.mixture, features, windows)

        return self._finish(steps(), on_progress)

    def separate(
        self,
        source: Recording | Path | str | Samples,
        description: str,
        *,
        spans: Sequence[str | dict[str, Any]] = (),
        candidates: int = 1,
        seed: int = 0,
        redraws_max: int = 1,
        residual: stages.Residual = "generated",
        watermark: bool = True,
        sample_rate_hz: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Separation:
        """Pull the sound that `description` names out: `stages.SeparateParameters` says what the
        rest means. Samples are taken to be at the model's rate. Raises InvalidInput for parameters
        that are wrong, SPAN_OUTSIDE, PROMPT_EMPTY or PROMPT_TOO_LONG, and what `encode` raises.
        """
        place = self._open()
        values = {
            "prompt": description, "spans": list(spans), "candidates": candidates, "seed": seed,
            "redraws_max": redraws_max, "residual": residual, "watermark": watermark,
            "sample_rate_hz": sample_rate_hz,
        }  # fmt: skip
        parameters = stages.parse(StageKind.SEPARATE, values)
        assert isinstance(parameters, stages.SeparateParameters)
        asked = request.from_parameters(parameters)
        recording = source if isinstance(source, Recording) else self.encode(source)

        def steps() -> Generator[Step, None, tuple[Separated, tuple[torch.Tensor, ...]]]:
            separated = yield from separate_encoded(place, recording, asked)
            signals = yield from output.finish(separated, asked, place.arrays, self.sample_rate_hz)
            return separated, signals

        separated, (target, rest) = self._finish(steps(), on_progress)
        return Separation(
            target=target.numpy(),
            residual=rest.numpy(),
            sample_rate_hz=asked.sample_rate_hz or self.sample_rate_hz,
            seed=separated.chosen.seed,
            score=separated.chosen.score,
            scores={judged.seed: judged.score for judged in separated.judged},
            notes=output.notes_on(separated, 0),
        )

    def _open(self) -> Workplace:
        if self._place is None:
            raise Refused("CLOSED", "this SamAudio was closed; load it again")
        return self._place

    def _finish(
        self, steps: Generator[Step, None, Result], on_progress: OnProgress | None
    ) -> Result:
        with self._lock, torch.inference_mode():
            while True:
                try:
                    step = next(steps)
                except StopIteration as stop:
                    found: Result = stop.value
                    return found
                if on_progress is not None:
                    on_progress(step.done, step.total, step.note)

    def _blocks(
        self, source: Path | str | Samples, sample_rate_hz: int | None
    ) -> Iterable[Samples]:
        if not isinstance(source, np.ndarray):
            return audio.mono_blocks(Path(source), self.sample_rate_hz)
        return _array_blocks(source, sample_rate_hz or self.sample_rate_hz, self.sample_rate_hz)


def _array_blocks(samples: Samples, source_hz: int, target_hz: int) -> Iterator[Samples]:
    if samples.ndim not in (1, 2):
        text = f"samples must be [N] or [channels, N]; these are {samples.shape}"
        raise InvalidInput("AUDIO_UNREADABLE", text)
    bad_count = int(np.count_nonzero(~np.isfinite(samples)))
    if bad_count:
        text = f"{bad_count} samples are NaN or infinite"
        raise InvalidInput("AUDIO_NOT_FINITE", text, not_finite_count=bad_count)
    mono = samples if samples.ndim == 1 else samples.mean(axis=0)
    yield from audio.resampled(iter([mono.astype(np.float32)]), source_hz, target_hz)


def _source(
    path_or_repo: Path | str,
    text_encoder: Path | str | None,
    revision: str | None,
    fetched: Callable[..., Path],
) -> Source:
    path = Path(path_or_repo).expanduser()
    if path.is_dir() or isinstance(path_or_repo, Path):
        folder = path
    else:
        folder = fetched(path_or_repo, hub.MODEL_FILES, revision)
    if text_encoder is not None and Path(text_encoder).expanduser().is_dir():
        return choices.open_source(folder, Path(text_encoder).expanduser())
    if text_encoder is None:
        for name in ("t5", "text_encoder"):
            if (folder / name).is_dir():
                return choices.open_source(folder, folder / name)
    repository = str(text_encoder or model.open_folder(folder).config.text_encoder.name)
    return choices.open_source(folder, fetched(repository, hub.TEXT_ENCODER_FILES))


def _device(name: str) -> torch.device:
    """Raises Refused DEVICE_MISSING."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Refused("DEVICE_MISSING", f'device "{name}": this machine has no usable CUDA device')
    return device


def _precisions(wanted: str | None) -> tuple[str, ...]:
    if wanted is None:
        return PRECISIONS
    if wanted not in PRECISIONS:
        text = FLOAT16_REFUSED if wanted == "float16" else f"there is no precision {wanted!r}"
        raise InvalidInput("PRECISION_REFUSED", text, precision=wanted, known=",".join(PRECISIONS))
    return (wanted,)


def _bytes(limit: int | str | None) -> int | None:
    if limit is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(limit))
    except ValidationError:
        text = f'memory_limit {limit!r} is no size; write "4 GiB" or a number of bytes'
        raise InvalidInput("MEMORY_LIMIT_INVALID", text) from None


def _best(offered: tuple[Option, ...], limit: int | None, device: torch.device) -> Option:
    """The first that fits. Raises Refused NEVER_FITS with what the smallest takes."""
    context = CONTEXT_BYTES[device.type]
    needs = [option.peak_bytes(3_600_000) + context for option in offered]
    for option, need in zip(offered, needs, strict=True):
        if limit is None or need <= limit:
            return option
    raise Refused(
        "NEVER_FITS",
        f"no precision fits {limit} bytes: {offered[needs.index(min(needs))].name} takes "
        f"{min(needs)}; a shorter window_ms takes less",
        required_bytes=min(needs),
        available_bytes=limit,
    )


def _ignore(done: int, total: int) -> None:
    """No progress is shown."""
