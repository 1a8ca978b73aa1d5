"""Audio files in and out through PyAV and `wave`: no ffmpeg program, no torch.

What a file is is decided by its bytes; its name is never looked at. A recording is decoded block by
block, so memory does not grow with its length except for what the caller keeps.
"""

import mmap
import wave
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from coscheduler.errors import EngineFault, InvalidInput

Samples = NDArray[np.float32]

# Demuxers that read one file and nothing else: playlists could open further files or addresses.
_DEMUXERS = (
    "wav,w64,flac,mp3,mov,mp4,m4a,3gp,3g2,mj2,ogg,matroska,webm,aac,aiff,au,caf,amr,asf,avi,mpegts"
)
_STREAMS_MAX = 64  # a film has a dozen: sound in some languages, subtitles in more
_WAV_BYTES_UNKNOWN = 0x7FFFF000  # writers into a pipe put a size from here up, or 0
_MOV_SLACK_MS = 1000  # edit lists and encoder padding make its declared length inexact
_FULL_SCALE = 32768.0  # of 16-bit PCM
_GATHERED_BYTES_MIN = 1 << 20
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_WRITE_BLOCK_SAMPLES = 1 << 20


@dataclass(frozen=True)
class ProbedAudio:
    """What a full decode of a recording found."""

    duration_ms: int
    sample_rate_hz: int
    channel_count: int
    codec: str


@dataclass
class _Decoding:
    """One pass over the best audio stream of an open file; the counts are final when it ends."""

    container: InputContainer
    stream: AudioStream
    wav_declared_count: int = 0
    sample_rate_hz: int = 0
    channel_count: int = 0
    sample_count: int = 0
    packet_count: int = 0
    damaged_count: int = 0

    def blocks(self) -> Iterator[Samples]:
        """Decoded frames, float32 [channels, n].

        Raises InvalidInput AUDIO_UNREADABLE when a frame differs in layout from the first, when too
        much is damaged, or when the end is missing.
        """
        for frame in self._frames():
            rate_hz, channels = frame.sample_rate, len(frame.layout.channels)
            if self.sample_count == 0:
                self.sample_rate_hz, self.channel_count = rate_hz, channels
            if (rate_hz, channels) != (self.sample_rate_hz, self.channel_count):
                raise _unreadable("its sample rate or channels change in the middle")
            self.sample_count += frame.samples
            yield _to_float(frame)
        self._check_complete()

    def _frames(self) -> Iterator[AudioFrame]:
        for packet in self.container.demux(self.stream):
            self.packet_count += 1
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                self.damaged_count += 1
                continue
            yield from (frame for frame in frames if isinstance(frame, AudioFrame))

    def _check_complete(self) -> None:
        """Lossy files often carry a damaged packet (tags, a cut first frame); 1 % is let pass."""
        if self.damaged_count > 1 + self.packet_count // 100:
            raise _unreadable(
                f"{self.damaged_count} of {self.packet_count} packets are damaged",
                damaged_count=self.damaged_count,
                packet_count=self.packet_count,
            )
        missing = self._declared_count() - self.sample_count
        if missing > 0:
            raise _unreadable(
                f"it is truncated: {missing} of {missing + self.sample_count} samples are missing",
                sample_count=self.sample_count,
                missing_count=missing,
            )

    def _declared_count(self) -> int:
        """The least number of samples the header promises; 0 where it promises nothing exact."""
        demuxer = self.container.format.name
        if demuxer == "wav":
            return self.wav_declared_count if self.stream.codec.name.startswith("pcm_") else 0
        if self.stream.duration is None or self.stream.time_base is None:
            return 0
        declared = int(self.stream.duration * self.stream.time_base * self.sample_rate_hz)
        if demuxer.startswith("mov"):
            return max(declared - _MOV_SLACK_MS * self.sample_rate_hz // 1000, 0)
        return declared if demuxer == "flac" else 0


def probe(path: Path, duration_ms_min: int, duration_ms_max: int) -> ProbedAudio:
    """Decode all of `path` and say what it holds.

    Raises InvalidInput AUDIO_UNREADABLE, AUDIO_TOO_SHORT, AUDIO_TOO_LONG (decoding stops at the
    limit) or AUDIO_NOT_FINITE, with the numbers; OSError when the file cannot be opened.
    """
    not_finite_count = 0
    with _opened(path) as decoding:
        for block in decoding.blocks():
            not_finite_count += int(np.count_nonzero(~np.isfinite(block)))
            _check_not_too_long(decoding, duration_ms_max)
        duration_ms = _duration_ms(decoding)
        if duration_ms < duration_ms_min:
            raise _too_short(decoding, duration_ms_min)
        codec = decoding.stream.codec_context.name
    if not_finite_count:
        raise _not_finite(not_finite_count)
    return ProbedAudio(duration_ms, decoding.sample_rate_hz, decoding.channel_count, codec)


def read_mono(path: Path, sample_rate_hz: int) -> Samples:
    """The whole recording: mean over channels, resampled. float32 [N], full scale = 1.0.

    Raises InvalidInput AUDIO_UNREADABLE or AUDIO_NOT_FINITE; OSError when it cannot be opened.
    """
    gathered = Gathered()
    for block in mono_blocks(path, sample_rate_hz):
        gathered.add(block)
    return gathered.samples()


class Gathered:
    """Blocks joined into one array as they come, without ever holding the whole twice.

    The array lies in a private mapping: growing it moves no byte and touches no page.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mapping = mmap.mmap(-1, _GATHERED_BYTES_MIN, flags=_PRIVATE)

    def add(self, block: Samples) -> None:
        """Append float32 [n]."""
        end = 4 * (self.count + len(block))
        if end > len(self._mapping):
            self._mapping.resize(max(end, 2 * len(self._mapping)))
        self._mapping[4 * self.count : end] = block.tobytes()
        self.count += len(block)

    def samples(self) -> Samples:
        """All of it, float32 [count]; nothing can be added any more."""
        return np.frombuffer(self._mapping, np.float32, self.count)


def mono_blocks(path: Path, sample_rate_hz: int) -> Iterator[Samples]:
    """`read_mono` piece by piece: float32 [n] blocks of a codec frame or so, in order."""
    with _opened(path) as decoding:
        mono = (_mean(block) for block in decoding.blocks())
        first = next(mono, None)
        if first is None:
            return
        yield from resampled(chain([first], mono), decoding.sample_rate_hz, sample_rate_hz)


def resampled(blocks: Iterator[Samples], source_hz: int, target_hz: int) -> Iterator[Samples]:
    """Blocks float32 [n] at one rate -> blocks of the same signal at another, in order."""
    if source_hz == target_hz:
        yield from blocks
        return
    resampler = AudioResampler(format="flt", layout="mono", rate=target_hz)
    for block in blocks:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), "flt", "mono")
        frame.sample_rate = source_hz
        yield from (piece.to_ndarray()[0] for piece in resampler.resample(frame))
    yield from (piece.to_ndarray()[0] for piece in resampler.resample(None))


def write_wav(path: Path, samples: Samples, sample_rate_hz: int) -> int:
    """Write `samples` (float32 [N], full scale 1.0) as 16-bit PCM WAV; returns the clipped count.

    Raises EngineFault OUTPUT_NOT_FINITE before anything is written.
    """
    writing = write_wav_in_blocks(path, samples, sample_rate_hz)
    while True:
        try:
            next(writing)
        except StopIteration as stop:
            clipped_count: int = stop.value
            return clipped_count


def write_wav_in_blocks(
    path: Path, samples: Samples, sample_rate_hz: int
) -> Generator[None, None, int]:
    """`write_wav` with a chance to pause after each block of about a million samples."""
    bad_count = 0
    for block in _blocks(samples):
        bad_count += len(block) - int(np.count_nonzero(np.isfinite(block)))
        yield
    if bad_count:
        raise EngineFault(
            "OUTPUT_NOT_FINITE",
            f"{bad_count} of {len(samples)} samples are not finite",
            not_finite_count=bad_count,
            sample_count=len(samples),
        )
    clipped_count = 0
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        for block in _blocks(samples):
            clipped_count += int(np.count_nonzero(np.abs(block) > 1.0))
            scaled = np.clip(np.rint(block * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
            file.writeframesraw(scaled.astype("<i2").tobytes())
            yield
    return clipped_count


def _blocks(samples: Samples) -> Iterator[Samples]:
    starts = range(0, len(samples), _WRITE_BLOCK_SAMPLES)
    return (samples[start : start + _WRITE_BLOCK_SAMPLES] for start in starts)


class _Nameless:
    """A file that does not tell its name, so that libavformat can only go by the bytes."""

    def __init__(self, file: FileIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.seekable = file.seekable


@contextmanager
def _opened(path: Path) -> Iterator[_Decoding]:
    """Open the best audio stream. Every libav error inside the block becomes AUDIO_UNREADABLE."""
    with FileIO(path) as file:
        wav_declared_count = _wav_declared_count(file)
        try:
            options = {"format_whitelist": _DEMUXERS}
            opened: Any = av.open(_Nameless(file), options=options, metadata_errors="replace")
            with opened as container:
                stream_count = len(container.streams)
                if stream_count > _STREAMS_MAX:
                    raise _unreadable(
                        f"it has {stream_count} streams, at most {_STREAMS_MAX} are allowed; keep "
                        "the one with the sound",
                        stream_count=stream_count,
                        stream_count_max=_STREAMS_MAX,
                    )
                if not container.streams.audio:
                    raise _unreadable("it has no audio stream")
                stream = container.streams.best("audio")
                stream.codec_context.thread_count = 1  # a probe or an engine counts its own threads
                yield _Decoding(container, stream, wav_declared_count)
        except av.error.FFmpegError as error:
            raise _unreadable(error.strerror or type(error).__name__) from None


def _wav_declared_count(file: FileIO) -> int:
    """Samples per channel by the header of a WAV file; 0 where it is none or does not say.

    libavformat quietly shortens a truncated WAV to what is there, so the header is read here.
    """
    head = file.read(12)
    block_bytes = 0
    while head[:4] == b"RIFF" and head[8:12] == b"WAVE" and len(chunk := file.read(8)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            known = block_bytes > 0 and size < _WAV_BYTES_UNKNOWN
            file.seek(0)
            return size // block_bytes if known else 0
        body_start = file.tell()
        if chunk[:4] == b"fmt ":
            block_bytes = int.from_bytes(file.read(14)[12:14], "little")
        file.seek(body_start + size + size % 2)  # chunks are padded to even sizes
    file.seek(0)
    return 0


def _to_float(frame: AudioFrame) -> Samples:
    """A decoded frame in any sample format as float32 [channels, n], full scale 1.0."""
    raw: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        raw = raw.reshape(-1, len(frame.layout.channels)).T
    samples = raw.astype(np.float32, copy=False)
    if raw.dtype.kind == "f":
        return samples
    if raw.dtype == np.uint8:
        return (samples - np.float32(128)) / np.float32(128)
    return samples / np.float32(2.0 ** (8 * raw.itemsize - 1))


def _mean(block: Samples) -> Samples:
    """[channels, n] -> [n]. Raises InvalidInput AUDIO_NOT_FINITE."""
    mono: Samples = block.mean(axis=0, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise _not_finite(int(np.count_nonzero(~np.isfinite(block))))
    return mono


def _duration_ms(decoding: _Decoding) -> int:
    return decoding.sample_count * 1000 // max(decoding.sample_rate_hz, 1)


def _check_not_too_long(decoding: _Decoding, duration_ms_max: int) -> None:
    if decoding.sample_count * 1000 > duration_ms_max * decoding.sample_rate_hz:
        raise InvalidInput(
            "AUDIO_TOO_LONG",
            f"the recording is longer than the limit of {duration_ms_max} ms",
            duration_ms_max=duration_ms_max,
        )


def _too_short(decoding: _Decoding, duration_ms_min: int) -> InvalidInput:
    duration_ms = _duration_ms(decoding)
    return InvalidInput(
        "AUDIO_TOO_SHORT",
        f"the recording has {decoding.sample_count} samples ({duration_ms} ms); "
        f"at least {duration_ms_min} ms are needed",
        duration_ms=duration_ms,
        duration_ms_min=duration_ms_min,
        sample_count=decoding.sample_count,
    )


def _not_finite(count: int) -> InvalidInput:
    return InvalidInput(
        "AUDIO_NOT_FINITE",
        f"{count} samples of the recording are NaN or infinite",
        not_finite_count=count,
    )


def _unreadable(why: str, **numbers: int) -> InvalidInput:
    return InvalidInput("AUDIO_UNREADABLE", f"the recording cannot be read: {why}", **numbers)
