"""Where there is speech, by the Silero model that comes with faster-whisper.

It is driven in blocks of a minute. A block ends where its last stretch of speech begins, and the
next one begins there: no word is cut, and memory does not grow with the recording. Recordings of
up to one block are what the library gives for the whole.
"""

from collections.abc import Generator

from coscheduler.engines.transcription.libraries import module
from coscheduler.engines.transcription.samples import Samples
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ, Chunk, Thresholds, joined

BLOCK_SECONDS = 60  # takes 18 MiB; the library's own way, all at once, 18 MiB a minute
# The defaults of Silero's own function, with which WhisperX calls it; faster-whisper has others.
_SPEECH_MS_MIN, _SILENCE_MS_MIN, _PAD_MS = 250, 100, 30


def chunks(
    samples: Samples, thresholds: Thresholds, block_seconds: int = BLOCK_SECONDS
) -> Generator[tuple[int, int], None, list[Chunk]]:
    """Find the chunks of `samples` (float32 [N] at 16 kHz). Yields (done, total) samples."""
    segment = module("whisperx.diarize").Segment
    found = yield from spans(samples, thresholds, block_seconds)
    if not found:
        return []
    merge = module("whisperx.vads").Vad.merge_chunks
    segments = [segment(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ) for start, end in found]
    return joined(merge(segments, thresholds.chunk_seconds, thresholds.onset, thresholds.offset))


def spans(
    samples: Samples, thresholds: Thresholds, block_seconds: int = BLOCK_SECONDS
) -> Generator[tuple[int, int], None, list[tuple[int, int]]]:
    """Find the stretches of speech as (start, end) in samples. Yields (done, total) samples."""
    found, first, size = [], 0, block_seconds * SAMPLE_RATE_HZ
    while first < len(samples):
        is_last = first + size >= len(samples)
        block = _spans(samples[first : first + size], thresholds)
        goes_on = not is_last and bool(block) and block[-1][0] > 0  # perhaps beyond the block
        size_done = block.pop()[0] if goes_on else size
        found += [(first + start, first + end) for start, end in block]
        first += size_done
        yield min(first, len(samples)), len(samples)
    return found


def _spans(block: Samples, thresholds: Thresholds) -> list[tuple[int, int]]:
    """Stretches of speech as (start, end) in samples of the block."""
    vad = module("faster_whisper.vad")
    options = vad.VadOptions(
        threshold=thresholds.onset,
        min_speech_duration_ms=_SPEECH_MS_MIN,
        max_speech_duration_s=thresholds.chunk_seconds,
        min_silence_duration_ms=_SILENCE_MS_MIN,
        speech_pad_ms=_PAD_MS,
    )
    return [(span["start"], span["end"]) for span in vad.get_speech_timestamps(block, options)]
