"""One recording through the phases: read, detect speech, text, word times, speakers, files.

The pipeline's own `transcribe` keeps state between calls (tokenizer, options) and cannot pause. Its
parts are called one by one here, a batch of chunks at a time, and nothing is left in it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from coscheduler import audio
from coscheduler.config import TranscriptionSettings
from coscheduler.engines import hub
from coscheduler.engines.base import Slice, StageResult, Task
from coscheduler.engines.streaming import heap
from coscheduler.engines.transcription import (
    decoding,
    footprint,
    known,
    silero,
    speakers,
    speech,
    words,
    writers,
)
from coscheduler.engines.transcription.ahead import Ahead
from coscheduler.engines.transcription.checkpoint import WhisperModel
from coscheduler.engines.transcription.components import Component
from coscheduler.engines.transcription.kept import Kept, Progress
from coscheduler.engines.transcription.libraries import module, reusing
from coscheduler.engines.transcription.placement import Part
from coscheduler.engines.transcription.samples import Samples, Spool
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ, Chunk
from coscheduler.stages import TranscribeParameters

T = TypeVar("T")
Transcript = list[dict[str, Any]]

SHARES = 1000  # progress is counted in these, each phase from one bound to the next
_READ_SHARES, _SPEECH_SHARES, _TEXT_SHARES, _WORDS_SHARES = 50, 200, 700, 900
_SPEAKERS_SHARES = 990  # where there are names to find
_SEGMENTS_PER_TRIM = 16
_READ_SLICE_SAMPLES = 60 * SAMPLE_RATE_HZ
# What decides the text of a chunk, and which chunks there are.
_DECIDING = {
    "language", "task", "beam_size", "patience", "length_penalty", "suppress_tokens",
    "suppress_numerals", "initial_prompt", "hotwords", "vad_method", "vad_onset", "vad_offset",
    "chunk_ms",
}  # fmt: skip
_LAYOUT = {"max_line_width", "max_line_count", "highlight_words"}


@dataclass(frozen=True)
class Loaded:
    """The models of a loaded option, and what the config says of their use."""

    pipeline: Any  # whisperx.asr.FasterWhisperPipeline
    sizes: WhisperModel
    is_multilingual: bool
    whisper: Component[Any]  # ctranslate2.models.Whisper, which the pipeline calls
    aligners: Mapping[str, Component[words.Aligner]]  # by language
    diarizer: Component[Any] | None  # whisperx.diarize.DiarizationPipeline
    settings: TranscriptionSettings
    compute_type: str
    batch_size: int

    @property
    def components(self) -> dict[Part, tuple[Component[Any], ...]]:
        """What can come and go."""
        diarizers = (self.diarizer,) if self.diarizer else ()
        aligners = tuple(self.aligners.values())
        return {Part.WHISPER: (self.whisper,), Part.ALIGNERS: aligners, Part.DIARIZER: diarizers}


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
        self._wanted = decoding.with_code(parameters)
        self._give_back = give_back
        self._notes: list[str] = []

    def detected(self) -> Generator[Slice, None, None]:
        """Read the recording and find its speech, for a run to go on from. Beside another run: the
        heap is left as that one wants it.
        """
        samples = yield from self._read()
        kept = Kept(self._task.resume_dir, self._identity())
        if kept.read() is None:
            chunks = yield from self._speech(samples)
            kept.write(Progress(tuple(chunks), ""))

    def slices(self, ahead: Ahead | None = None) -> Generator[Slice, None, StageResult]:
        """Run all phases; `ahead` begins when there is nothing left to detect here.

        Raises InvalidInput or EngineFault; see `TranscriptionEngine.slices`.
        """
        self._check()
        clips = self._read_clips()
        samples = yield from self._read()
        kept = Kept(self._task.resume_dir, self._identity())
        progress = kept.read() or Progress(tuple((yield from self._detect(samples))), "")
        if not progress.chunks:
            self._notes.append("no speech was found")
            return self._finish({"segments": [], "language": self._wanted.language}, progress)
        self._give_back()
        if ahead is not None:
            ahead.start()
        with self._loaded.whisper.use(), reusing(footprint.REUSED_BYTES_MAX):
            progress = replace(progress, language=progress.language or self._language(samples))
            segments = yield from self._text(samples, progress, kept)
        result = yield from self._words(samples, segments, progress.language)
        yield from self._speakers(samples, result, clips)
        return self._finish(result, progress)

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the text beside the recording."""
        settings = self._loaded.settings
        weights = (settings.model / "model.bin").stat()
        return {
            "model": [str(settings.model), weights.st_size, weights.st_mtime_ns],
            "compute_type": self._loaded.compute_type,
            "beam_size": settings.beam_size,
            "speech": [settings.vad_method, settings.vad_onset, settings.vad_offset],
            "chunk_ms": settings.chunk_ms,
            "parameters": self._wanted.model_dump(mode="json", include=_DECIDING),
        }

    def _check(self) -> None:
        """Can the model do what is wanted?"""
        settings, tokens = self._loaded.settings, self._loaded.pipeline.model.hf_tokenizer
        name, is_multilingual = hub.title(settings.model), self._loaded.is_multilingual
        decoding.check(tokens, is_multilingual, name, settings.beam_size, self._wanted)

    def _read(self) -> Generator[Slice, None, Samples]:
        """The recording, float32 [N] at 16 kHz."""
        expected = max(1, self._task.duration_ms * SAMPLE_RATE_HZ // 1000)
        spool, next_slice = Spool(self._task.output_dir), _READ_SLICE_SAMPLES
        for block in audio.mono_blocks(self._task.input_path, SAMPLE_RATE_HZ):
            spool.add(block)
            if spool.count >= next_slice:
                next_slice += _READ_SLICE_SAMPLES
                yield _slice(0, _READ_SHARES, spool.count, expected, "reading")
        return spool.samples()

    def _read_clips(self) -> tuple[known.Clip, ...]:
        """The voices that the task names; a bad one fails it before any work is done."""
        paths = self._task.artifact_paths
        clips = [(entry.name, paths[entry.artifact]) for entry in self._wanted.known_speakers]
        return known.read(clips, self._task.output_dir)

    def _detect(self, samples: Samples) -> Generator[Slice, None, list[Chunk]]:
        if self._hears_by_silero:
            return (yield from self._speech(samples))
        with reusing(footprint.REUSED_BYTES_MAX):
            return (yield from self._speech(samples))

    @property
    def _hears_by_silero(self) -> bool:
        return (self._wanted.vad_method or self._loaded.settings.vad_method) == "silero"

    def _speech(self, samples: Samples) -> Generator[Slice, None, list[Chunk]]:
        wanted, settings = self._wanted, self._loaded.settings
        chunk_ms = wanted.chunk_ms or settings.chunk_ms
        thresholds = speech.Thresholds(
            onset=wanted.vad_onset or settings.vad_onset,
            offset=wanted.vad_offset or settings.vad_offset,
            chunk_seconds=min(chunk_ms / 1000, float(footprint.WINDOW_SECONDS)),
        )
        if self._hears_by_silero:
            steps = silero.chunks(samples, thresholds)
        else:
            steps = speech.chunks(self._loaded.pipeline.vad_model, samples, thresholds)
        return (yield from _relayed(steps, _READ_SHARES, _SPEECH_SHARES, "detecting speech"))

    def _language(self, samples: Samples) -> str:
        """The wanted language, or the one that the model hears in the first window."""
        whisper = self._loaded.pipeline.model
        if not self._loaded.is_multilingual:
            return "en"
        if self._wanted.language:
            return self._wanted.language
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
        self, samples: Samples, progress: Progress, kept: Kept
    ) -> Generator[Slice, None, Transcript]:
        """Text of every chunk, as WhisperX's segments; those of `progress` are there already."""
        tokens = decoding.tokenizer(self._loaded.pipeline.model, progress.language, self._wanted)
        batch_size = footprint.window_count(self._task.duration_ms, self._loaded.batch_size)
        if self._wanted.initial_prompt or self._wanted.hotwords:
            kind, beam_size = self._loaded.compute_type, self._loaded.settings.beam_size
            batch_size = footprint.prompted_count(self._loaded.sizes, kind, beam_size, batch_size)
        batch_size = min(batch_size, self._wanted.batch_size_max or batch_size)
        chunks, segments = progress.chunks, list(progress.segments)
        for first in range(len(segments), len(chunks), batch_size):
            segments += self._batch(samples, chunks[first : first + batch_size], tokens)
            kept.write(replace(progress, segments=tuple(segments)))
            yield _slice(_SPEECH_SHARES, _TEXT_SHARES, len(segments), len(chunks), "transcribing")
        return segments

    def _batch(self, samples: Samples, chunks: Sequence[Chunk], tokens: Any) -> Transcript:
        """Text of some chunks at once, as WhisperX's segments."""
        pipeline = self._loaded.pipeline
        options = decoding.options(pipeline, tokens, self._wanted, self._loaded.settings.beam_size)
        spectra = self._spectra([_cut(samples, chunk) for chunk in chunks])
        said = pipeline.model.generate_segment_batched(spectra, tokens, options)
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
        component = self._loaded.aligners.get(self._wanted.align_model or language)
        if not self._wanted.times_words or component is None:
            if self._wanted.times_words:
                self._notes.append(
                    f"no aligner is configured for language {language}: no word times"
                )
            return {"segments": segments, "language": language}
        self._give_back()
        with component.use() as aligner, reusing(footprint.REUSED_BYTES_MAX_OF_WORDS):
            aligned = yield from self._aligned(aligner, samples, segments)
        all_words = [word for segment in aligned for word in segment["words"]]
        return {"segments": aligned, "word_segments": all_words, "language": language}

    def _aligned(
        self, aligner: words.Aligner, samples: Samples, segments: Transcript
    ) -> Generator[Slice, None, Transcript]:
        """The segments, sentence by sentence, with the times of their words."""
        method, characters = self._wanted.interpolate_method, self._wanted.char_alignments
        aligned: Transcript = []
        for done, segment in enumerate(segments, start=1):
            aligned += aligner.align(segment, samples, method, characters)
            if done % _SEGMENTS_PER_TRIM == 0:
                heap.trim()  # what is kept of each segment leaves holes
            yield _slice(_TEXT_SHARES, _WORDS_SHARES, done, len(segments), "aligning")
        return aligned

    def _speakers(
        self, samples: Samples, result: dict[str, Any], clips: Sequence[known.Clip]
    ) -> Generator[Slice, None, None]:
        wanted = self._wanted
        if not wanted.diarize:
            return
        if self._loaded.diarizer is None:
            if wanted.speakers or wanted.speakers_min or wanted.speakers_max or clips:
                self._notes.append("no diarization model is configured: no speakers")
            return
        self._give_back()
        with self._loaded.diarizer.use() as diarizer:
            yield from self._diarized(diarizer, samples, result, clips)

    def _diarized(
        self,
        diarizer: Any,
        samples: Samples,
        result: dict[str, Any],
        clips: Sequence[known.Clip],
    ) -> Generator[Slice, None, None]:
        """Put speakers into the result, with names where there are clips."""
        wanted = self._wanted
        expected = speakers.Expected(wanted.speakers, wanted.speakers_min, wanted.speakers_max)
        steps = speakers.diarize(diarizer, samples, expected)
        heard = _SPEAKERS_SHARES if clips else SHARES
        turns, embeddings = yield from _relayed(steps, _WORDS_SHARES, heard, "speakers")
        if clips:
            matches = yield from self._names(diarizer, clips, embeddings or {})
            result["known_speakers"] = known.as_json(matches)
            names = known.renamed(matches)
            turns["speaker"] = turns["speaker"].replace(names)
            embeddings = {names.get(label, label): row for label, row in (embeddings or {}).items()}
        module("whisperx.diarize").assign_word_speakers(
            turns, result, embeddings if wanted.speaker_embeddings else None
        )

    def _names(
        self, diarizer: Any, clips: Sequence[known.Clip], vectors: known.Vectors
    ) -> Generator[Slice, None, tuple[known.Match, ...]]:
        """Who the speakers are, by the clips."""
        one = partial(speakers.diarize, diarizer, expected=speakers.Expected(count=1))
        voices = yield from _relayed(known.voices(clips, one), _SPEAKERS_SHARES, SHARES, "names")
        matches = known.match(voices, vectors, self._wanted.speaker_distance_max)
        for found in matches:
            if not found.label:
                self._notes.append(_not_found(found))
        return matches

    def _finish(self, result: dict[str, Any], progress: Progress) -> StageResult:
        wanted = self._wanted
        layout = wanted.model_dump(include=_LAYOUT)
        files = writers.write(self._task.output_dir, result, wanted.formats, layout)
        numbers = {
            "segment_count": len(result["segments"]),
            "word_count": sum(_word_count(segment) for segment in result["segments"]),
            "speech_ms": round(1000 * sum(chunk.speech_seconds for chunk in progress.chunks)),
            "resumed_segment_count": len(progress.segments),
        }
        return StageResult(files, tuple(self._notes), numbers)


def _not_found(found: known.Match) -> str:
    if found.distance is None:
        return f"{found.name} was not found: nobody speaks"
    return f"{found.name} was not found: the nearest speaker is {found.distance} away"


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
