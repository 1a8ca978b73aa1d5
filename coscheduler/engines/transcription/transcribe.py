"""One recording through the phases: read, detect speech, text, word times, speakers, files.

The pipeline's own `transcribe` keeps state between calls (tokenizer, options) and cannot pause. Its
parts are called one by one here, a batch of chunks at a time, and nothing is left in it.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coscheduler import audio
from coscheduler.config import TranscriptionSettings
from coscheduler.engines import hub
from coscheduler.engines.base import Slice, StageResult, Task
from coscheduler.engines.streaming import heap
from coscheduler.engines.transcription import footprint, speakers, speech, words, writers
from coscheduler.engines.transcription.libraries import module
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ, Chunk
from coscheduler.errors import InvalidInput
from coscheduler.stages import TranscribeParameters

T = TypeVar("T")
Samples = NDArray[np.float32]
Transcript = list[dict[str, Any]]

SHARES = 1000  # progress is counted in these, each phase from one bound to the next
_READ_SHARES, _SPEECH_SHARES, _TEXT_SHARES, _WORDS_SHARES = 50, 200, 700, 900
_READ_SLICE_SAMPLES = 60 * SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Loaded:
    """The models of a loaded option, and what the config says of their use."""

    pipeline: Any  # whisperx.asr.FasterWhisperPipeline
    diarizer: Any | None  # whisperx.diarize.DiarizationPipeline
    settings: TranscriptionSettings
    batch_size: int
    device: str
    punkt_dir: Path


class Transcription:
    """One task. `give_back` returns freed memory to the system, between two phases."""

    def __init__(
        self,
        loaded: Loaded,
        task: Task,
        parameters: TranscribeParameters,
        give_back: Callable[[], None],
    ) -> None:
        self._loaded = loaded
        self._task = task
        self._parameters = parameters
        self._give_back = give_back
        self._notes: list[str] = []

    def slices(self) -> Generator[Slice, None, StageResult]:
        """Run all phases. Raises InvalidInput or EngineFault; see `TranscriptionEngine.slices`."""
        self._check_language()
        samples = yield from self._read()
        chunks = yield from self._detect(samples)
        if not chunks:
            self._notes.append("no speech was found")
            return self._finish({"segments": [], "language": self._parameters.language}, chunks)
        self._give_back()
        language = self._language(samples)
        segments = yield from self._text(samples, chunks, language)
        result = yield from self._words(samples, segments, language)
        yield from self._speakers(samples, result)
        return self._finish(result, chunks)

    def _check_language(self) -> None:
        wanted, whisper = self._parameters.language, self._loaded.pipeline.model
        if whisper.model.is_multilingual:
            known = not wanted or whisper.hf_tokenizer.token_to_id(f"<|{wanted}|>") is not None
        else:
            known = wanted in ("", "en")
        if not known:
            raise InvalidInput(
                "LANGUAGE_UNKNOWN", f"the model does not know the language {wanted!r}",
                language=wanted, model=hub.title(self._loaded.settings.model),
            )  # fmt: skip

    def _read(self) -> Generator[Slice, None, Samples]:
        """The recording, float32 [N] at 16 kHz."""
        expected = max(1, self._task.duration_ms * SAMPLE_RATE_HZ // 1000)
        gathered, next_slice = audio.Gathered(), _READ_SLICE_SAMPLES
        for block in audio.mono_blocks(self._task.input_path, SAMPLE_RATE_HZ):
            gathered.add(block)
            if gathered.count >= next_slice:
                next_slice += _READ_SLICE_SAMPLES
                yield _slice(0, _READ_SHARES, gathered.count, expected, "reading")
        return gathered.samples()

    def _detect(self, samples: Samples) -> Generator[Slice, None, list[Chunk]]:
        chosen = self._loaded.settings
        seconds = min(chosen.chunk_ms / 1000, float(footprint.WINDOW_SECONDS))
        thresholds = speech.Thresholds(chosen.vad_onset, chosen.vad_offset, seconds)
        steps = speech.chunks(self._loaded.pipeline.vad_model, samples, thresholds)
        return (yield from _relayed(steps, _READ_SHARES, _SPEECH_SHARES, "detecting speech"))

    def _language(self, samples: Samples) -> str:
        """The wanted language, or the one that the model hears in the first window."""
        whisper = self._loaded.pipeline.model
        if not whisper.model.is_multilingual:
            return "en"
        if self._parameters.language:
            return self._parameters.language
        window = samples[: footprint.WINDOW_SECONDS * SAMPLE_RATE_HZ]
        found = whisper.model.detect_language(whisper.encode(self._spectra([window])))
        token: str = found[0][0][0]
        return token.removeprefix("<|").removesuffix("|>")

    def _spectra(self, windows: list[Samples]) -> Any:
        """Mel spectra of windows of up to 30 s: torch float32 [windows, mels, frames]."""
        preprocess = self._loaded.pipeline.preprocess
        spectra = [preprocess({"inputs": window})["inputs"] for window in windows]
        stacked = module("torch").stack(spectra)
        del spectra
        heap.trim()  # the short-time spectra are done with, and the encoder wants much
        return stacked

    def _text(
        self, samples: Samples, chunks: list[Chunk], language: str
    ) -> Generator[Slice, None, Transcript]:
        whisper = self._loaded.pipeline.model
        tokenizer = module("faster_whisper.tokenizer").Tokenizer(
            whisper.hf_tokenizer,
            whisper.model.is_multilingual,
            task="transcribe",
            language=language,
        )
        batch_size = footprint.window_count(self._task.duration_ms, self._loaded.batch_size)
        segments: Transcript = []
        for first in range(0, len(chunks), batch_size):
            batch = chunks[first : first + batch_size]
            segments += self._batch(samples, batch, tokenizer)
            yield _slice(_SPEECH_SHARES, _TEXT_SHARES, len(segments), len(chunks), "transcribing")
        return segments

    def _batch(self, samples: Samples, chunks: list[Chunk], tokenizer: Any) -> Transcript:
        """Text of some chunks at once, as WhisperX's segments."""
        pipeline = self._loaded.pipeline
        spectra = self._spectra([_cut(samples, chunk) for chunk in chunks])
        said = pipeline.model.generate_segment_batched(spectra, tokenizer, pipeline.options)
        return [
            {
                "text": text,
                "start": round(chunk.start, 3),
                "end": round(chunk.end, 3),
                "avg_logprob": avg_logprob,
            }
            for chunk, text, avg_logprob in zip(
                chunks, said["text"], said["avg_logprob"], strict=True
            )
        ]

    def _words(
        self, samples: Samples, segments: Transcript, language: str
    ) -> Generator[Slice, None, dict[str, Any]]:
        """The result in WhisperX's sense, with word times where there is an aligner."""
        folder = self._loaded.settings.aligners.get(language)
        if not self._parameters.align or folder is None:
            if self._parameters.align:
                self._notes.append(
                    f"no aligner is configured for language {language}: no word times"
                )
            return {"segments": segments, "language": language}
        self._give_back()
        aligner = words.load_aligner(language, folder, self._loaded.device, self._loaded.punkt_dir)
        aligned: Transcript = []
        for done, segment in enumerate(segments, start=1):
            aligned += aligner.align(segment, samples)
            yield _slice(_TEXT_SHARES, _WORDS_SHARES, done, len(segments), "aligning")
        all_words = [word for segment in aligned for word in segment["words"]]
        return {"segments": aligned, "word_segments": all_words, "language": language}

    def _speakers(self, samples: Samples, result: dict[str, Any]) -> Generator[Slice, None, None]:
        wanted = self._parameters
        if not wanted.diarize:
            return
        if self._loaded.diarizer is None:
            if wanted.speakers_min or wanted.speakers_max:
                self._notes.append("no diarization model is configured: no speakers")
            return
        self._give_back()
        steps = speakers.diarize(
            self._loaded.diarizer, samples, wanted.speakers_min, wanted.speakers_max
        )
        turns = yield from _relayed(steps, _WORDS_SHARES, SHARES, "speakers")
        module("whisperx.diarize").assign_word_speakers(turns, result)

    def _finish(self, result: dict[str, Any], chunks: list[Chunk]) -> StageResult:
        files = writers.write(self._task.output_dir, result, self._parameters.formats)
        numbers = {
            "segment_count": len(result["segments"]),
            "word_count": sum(_word_count(segment) for segment in result["segments"]),
            "speech_ms": round(1000 * sum(chunk.speech_seconds for chunk in chunks)),
        }
        return StageResult(files, tuple(self._notes), numbers)


def _cut(samples: Samples, chunk: Chunk) -> Samples:
    return samples[int(chunk.start * SAMPLE_RATE_HZ) : int(chunk.end * SAMPLE_RATE_HZ)]


def _word_count(segment: dict[str, Any]) -> int:
    return len(segment["words"]) if "words" in segment else len(segment["text"].split())


def _slice(low: int, high: int, done: int, total: int, note: str) -> Slice:
    """Progress within a phase that goes from share `low` to share `high`."""
    return Slice(low + (high - low) * min(done, total) // total, SHARES, note)


def _relayed(
    steps: Generator[tuple[int, int], None, T], low: int, high: int, note: str
) -> Generator[Slice, None, T]:
    """The (done, total) steps of a phase as slices; the phase's result."""
    try:
        while True:
            done, total = next(steps)
            yield _slice(low, high, done, total, note)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()
