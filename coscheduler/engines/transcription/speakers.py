"""Who speaks when: a local pyannote pipeline, paused at each of its own progress reports."""

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coscheduler.engines.transcription import checkpoint
from coscheduler.engines.transcription.libraries import module

# Of the segmentation and of the embeddings. It bounds the memory of both: on the CPU the embeddings
# take 133 MiB one by one and 410 MiB eight at a time, and are no faster for it.
BATCH_SIZE = {"cpu": 1, "cuda": 8}
_OnPercent = Callable[[float], None]


def load_diarizer(folder: Path, device: str) -> Any:
    """Load a pyannote pipeline folder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    config = folder / "config.yaml"
    if not config.is_file():
        raise checkpoint.missing(config)
    try:
        diarizer = module("whisperx.diarize").DiarizationPipeline(str(folder), device=device)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise checkpoint.corrupt(folder, f"{type(error).__name__}: {error}") from None
    batch_size = BATCH_SIZE[device.partition(":")[0]]
    diarizer.model.embedding_batch_size = batch_size
    diarizer.model.segmentation_batch_size = batch_size
    if batch_size > 1:
        diarizer.model._embedding = Padded(diarizer.model._embedding, batch_size)
    return diarizer


def move(diarizer: Any, is_coming: bool, device: str) -> None:
    """Take the weights of a loaded diarizer to its device, or to RAM."""
    diarizer.model.to(module("torch").device(device if is_coming else "cpu"))


class Padded:
    """A speaker embedding whose batches all have one size.

    For the last batch of a recording, which is smaller, cuDNN may choose an algorithm with several
    times the workspace. So the last row is repeated, and what comes of it is dropped.
    """

    def __init__(self, embedding: Any, batch_size: int) -> None:
        self._embedding = embedding
        self._batch_size = batch_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)

    def __call__(self, waveforms: Any, masks: Any = None) -> Any:
        """`waveforms` [n, channels, samples] and `masks` [n, frames], torch; gives [n, dim]."""
        count = len(waveforms)
        full = None if masks is None else self._filled(masks)
        return self._embedding(self._filled(waveforms), masks=full)[:count]

    def _filled(self, rows: Any) -> Any:
        missing = max(0, self._batch_size - len(rows))
        return module("torch").cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


@dataclass(frozen=True)
class Expected:
    """How many speakers there are; 0 means that it is not known."""

    count: int = 0
    count_min: int = 0
    count_max: int = 0


def diarize(
    diarizer: Any, samples: NDArray[np.float32], expected: Expected
) -> Generator[tuple[int, int], None, tuple[Any, dict[str, list[float]] | None]]:
    """Turns of the speakers in `samples` (float32 [N], 16 kHz), as WhisperX's data frame, and a
    vector for each speaker's voice. Yields (percent, 100).
    """

    def run(on_percent: _OnPercent) -> Any:
        return diarizer(
            samples,
            num_speakers=expected.count or None,
            min_speakers=expected.count_min or None,
            max_speakers=expected.count_max or None,
            return_embeddings=True,
            progress_callback=on_percent,
        )

    found: tuple[Any, dict[str, list[float]] | None] = yield from stepwise(run)
    return found


class _Stopped(BaseException):
    """Unwinds a call that nobody waits for any more; no handler of the called code may keep it."""


def stepwise(run: Callable[[_OnPercent], Any]) -> Generator[tuple[int, int], None, Any]:
    """Turn a long call with a progress callback into a generator.

    The call runs in a thread of its own, but only while the generator is being advanced: it waits
    inside every callback. Closing the generator ends the call at its next callback.
    """
    call = _Call(run)
    try:
        while (percent := call.advance()) is not None:
            yield int(percent), 100
    finally:
        call.stop()
    return call.result()


class _Call:
    def __init__(self, run: Callable[[_OnPercent], Any]) -> None:
        self._run = run
        self._may_go, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._percent: float | None = None
        self._cancelled = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="stepwise", daemon=True)
        self._thread.start()

    def advance(self) -> float | None:
        """Run to the next callback and return its percentage; None when the call has ended."""
        self._percent = None
        self._may_go.release()
        self._has_stopped.acquire()
        return self._percent

    def stop(self) -> None:
        """End the call at its next callback and wait for it; nothing where it has ended."""
        self._cancelled = True
        self._may_go.release()
        self._thread.join()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def _work(self) -> None:
        self._may_go.acquire()
        try:
            if not self._cancelled:
                self._result = self._run(self._pause)
        except _Stopped:
            pass
        except BaseException as error:  # raised again in the caller's thread
            self._error = error
        self._percent = None
        self._has_stopped.release()

    def _pause(self, percent: float) -> None:
        self._percent = percent
        self._has_stopped.release()
        self._may_go.acquire()
        if self._cancelled:
            raise _Stopped
