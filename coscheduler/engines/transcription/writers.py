"""The transcript as files, by WhisperX's own writers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coscheduler.engines.base import OutputFile
from coscheduler.engines.transcription.libraries import module

_MEDIA_TYPES = {
    "json": "application/json",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "txt": "text/plain",
    "tsv": "text/tab-separated-values",
    "aud": "text/plain",
}
PLAIN: Mapping[str, Any] = {
    "max_line_width": None,
    "max_line_count": None,
    "highlight_words": False,
}


def write(
    folder: Path,
    result: dict[str, Any],
    formats: Iterable[str],
    layout: Mapping[str, Any] = PLAIN,
) -> tuple[OutputFile, ...]:
    """Write transcript.json and the other `formats` into `folder`; the json is always written.

    `result` is a result in WhisperX's sense: "segments", "language", "word_segments" if aligned.
    `layout` has the lines of the subtitles, as PLAIN.
    """
    chosen = ["json", *(name for name in formats if name != "json")]
    return tuple(_write(folder, result, name, layout) for name in dict.fromkeys(chosen))


def _write(
    folder: Path, result: dict[str, Any], kind: str, layout: Mapping[str, Any]
) -> OutputFile:
    filename = f"transcript.{kind}"
    writer = module("whisperx.utils").get_writer(kind, str(folder))
    shown = _with_words(result) if kind in ("srt", "vtt") else result
    with (folder / filename).open("w", encoding="utf-8") as file:
        writer.write_result(shown, file=file, options=layout)
    return OutputFile("transcript" if kind == "json" else kind, filename, _MEDIA_TYPES[kind])


def _with_words(result: dict[str, Any]) -> dict[str, Any]:
    """Subtitles are made of words: a segment that could not be aligned would vanish from them, so
    its whole text stands as one word there.
    """
    if not any("words" in segment for segment in result["segments"]):
        return result
    segments = [
        segment if segment.get("words") else {**segment, "words": [{"word": segment["text"]}]}
        for segment in result["segments"]
    ]
    return {**result, "segments": segments}
