"""Transcripts of one recording joined into one, and written down. No torch, no grpc: plain data.

A recording whose voices were separated is transcribed voice by voice. All transcripts have the
recording's own clock, so joining is sorting; nothing is merged, cut or left out, and what is said
at the same time stands one after the other.

`python -m coscheduler.transcripts` joins for the daemon: files of unknown origin are read in a
process of its own. Standard input: {"parts": [{"path", "name", "speaker"}]}; standard output: the
joined json and exit status 0, or {"error": {"reason", "message", "numbers"}} and 1.
"""

import json
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coscheduler.errors import InvalidInput

BYTES_MAX = 64 * 1024 * 1024
ADDRESS_SPACE_BYTES_MAX = 3 * 1024**3  # parsed, a transcript takes some twenty times its size
CPU_SECONDS_MAX = 120
SECONDS_MAX = 1_000_000  # eleven days
Segment = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A transcript as WhisperX has it: "segments" of "start", "end", "text" and perhaps "words".

    `speaker` is who speaks in it; "": whoever it says itself.
    """

    speaker: str
    transcript: Mapping[str, Any]


def read(path: Path, speaker: str = "", name: str = "") -> Part:
    """A transcript.json, called `name` in errors.

    Raises InvalidInput TRANSCRIPT_INVALID or TRANSCRIPT_TOO_LARGE.
    """
    name = name or path.name
    size_bytes = path.stat().st_size
    if size_bytes > BYTES_MAX:
        raise InvalidInput(
            "TRANSCRIPT_TOO_LARGE",
            f"{name} has {size_bytes} bytes; at most {BYTES_MAX} are joined",
            size_bytes=size_bytes,
            size_bytes_max=BYTES_MAX,
        )
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise _invalid(name, "it is not JSON") from None
    check(name, found)
    return Part(speaker, found)


def check(name: str, found: Any) -> None:
    """Raises InvalidInput TRANSCRIPT_INVALID, saying what of `name` is wrong."""
    segments = found.get("segments") if isinstance(found, dict) else None
    if not isinstance(segments, list):
        raise _invalid(name, 'it has no list "segments"')
    for number, segment in enumerate(segments):
        if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
            raise _invalid(name, f"segment {number} has no text")
        if not isinstance(segment.get("speaker", ""), str):
            raise _invalid(name, f"segment {number} has a speaker that is no text")
        if not (_is_time(segment.get("start")) and _is_time(segment.get("end"))):
            raise _invalid(name, f"segment {number} has no start and end in seconds")
        words = segment.get("words", [])
        if not isinstance(words, list) or not all(map(_is_word, words)):
            raise _invalid(name, f"segment {number} has words that are none")


def join(parts: Sequence[Part]) -> dict[str, Any]:
    """One transcript with all segments and words of the parts, by the time at which they begin.

    "language" is that of the part with the most text. Raises InvalidInput PARTS_MISSING.
    """
    if not parts:
        raise InvalidInput("PARTS_MISSING", "nothing to join: give one transcript or more")
    segments = [
        _by(part.speaker, segment) for part in parts for segment in part.transcript["segments"]
    ]
    segments.sort(key=lambda segment: (segment["start"], segment["end"]))
    longest = max(parts, key=_text_length)
    joined = {"segments": segments, "language": longest.transcript.get("language", "")}
    if any("words" in segment for segment in segments):
        joined["word_segments"] = _words(segments)
    return joined


def write(folder: Path, transcript: Mapping[str, Any], formats: Iterable[str]) -> dict[str, Path]:
    """Write transcript.json and the like into `folder` as WhisperX would; the files by format.

    `formats` are among FORMATS; lines of subtitles are not broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in formats:
        found[kind] = folder / f"transcript.{kind}"
        found[kind].write_text(WRITERS[kind](transcript), encoding="utf-8")
    return found


def _invalid(name: str, why: str) -> InvalidInput:
    text = f"{name} is no transcript: {why}; give a transcript.json of a transcription"
    return InvalidInput("TRANSCRIPT_INVALID", text, file=name)


def _is_time(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= SECONDS_MAX


def _is_word(word: Any) -> bool:
    if not isinstance(word, dict) or not isinstance(word.get("word"), str):
        return False
    return all(_is_time(word[name]) for name in ("start", "end") if name in word)


def _by(speaker: str, segment: Segment) -> Segment:
    """The segment as said by somebody; "": by whoever it says."""
    if not speaker:
        return segment
    named = {**segment, "speaker": speaker}
    if "words" in segment:
        named["words"] = [{**word, "speaker": speaker} for word in segment["words"]]
    return named


def _words(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """All words by their beginning; one without times stays behind the word before it."""
    timed: list[tuple[float, dict[str, Any]]] = []
    for segment in segments:
        start = segment["start"]
        for word in segment.get("words", ()):
            start = max(start, word.get("start", start))
            timed.append((start, word))
    return [word for _, word in sorted(timed, key=lambda entry: entry[0])]


def _text_length(part: Part) -> int:
    return sum(len(segment["text"]) for segment in part.transcript["segments"])


# ---- files -------------------------------------------------------------------------------------


def _as_json(transcript: Mapping[str, Any]) -> str:
    return json.dumps(transcript, ensure_ascii=False)


def _as_txt(transcript: Mapping[str, Any]) -> str:
    return "".join(f"{_said(segment)}\n" for segment in transcript["segments"])


def _as_srt(transcript: Mapping[str, Any]) -> str:
    cues = enumerate(transcript["segments"], start=1)
    return "".join(f"{number}\n{_cue(segment, ',', True)}\n" for number, segment in cues)


def _as_vtt(transcript: Mapping[str, Any]) -> str:
    cues = (f"{_cue(segment, '.', False)}\n" for segment in transcript["segments"])
    return "WEBVTT\n\n" + "".join(cues)


def _as_tsv(transcript: Mapping[str, Any]) -> str:
    rows = (
        f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}\t"
        f"{segment['text'].strip().replace(chr(9), ' ')}\n"
        for segment in transcript["segments"]
    )
    return "start\tend\ttext\n" + "".join(rows)


def _as_aud(transcript: Mapping[str, Any]) -> str:
    rows = (
        f"{segment['start']}\t{segment['end']}\t"
        f"{_in_brackets(segment)}{segment['text'].strip().replace(chr(9), ' ')}\n"
        for segment in transcript["segments"]
    )
    return "".join(rows)


WRITERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "json": _as_json,
    "srt": _as_srt,
    "vtt": _as_vtt,
    "txt": _as_txt,
    "tsv": _as_tsv,
    "aud": _as_aud,
}
FORMATS = tuple(WRITERS)


def _in_brackets(segment: Segment) -> str:
    return f"[[{segment['speaker']}]]" if "speaker" in segment else ""


def _said(segment: Segment) -> str:
    text = segment["text"].strip()
    return f"[{segment['speaker']}]: {text}" if "speaker" in segment else text


def _cue(segment: Segment, decimal: str, with_hours: bool) -> str:
    """A subtitle: from its first word to its last, where they have times."""
    words = segment.get("words", ())
    starts = [word["start"] for word in words if "start" in word]
    ends = [word["end"] for word in words if "end" in word]
    timed = bool(starts and ends)
    start = _clock(min(starts) if timed else segment["start"], decimal, with_hours)
    end = _clock(max(ends) if timed else segment["end"], decimal, with_hours)
    return f"{start} --> {end}\n{_said(segment).replace('-->', '->')}\n"


def _clock(seconds: float, decimal: str, with_hours: bool) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    ahead = f"{hours:02d}:" if with_hours or hours else ""
    return f"{ahead}{minute:02d}:{second:02d}{decimal}{milliseconds:03d}"


# ---- in a process of its own -------------------------------------------------------------------


def main() -> int:
    """Join what standard input names; see the module."""
    for kind, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES_MAX),
        (resource.RLIMIT_CPU, CPU_SECONDS_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))
    asked = json.load(sys.stdin)["parts"]
    try:
        parts = [read(Path(part["path"]), part["speaker"], part["name"]) for part in asked]
        print(json.dumps(join(parts)))
    except InvalidInput as error:
        told = {"reason": error.reason, "message": error.message, "numbers": error.numbers}
        print(json.dumps({"error": told}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
