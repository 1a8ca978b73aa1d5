"""Several voices of one recording: each separated and transcribed by itself, then joined."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coscheduler import transcripts
from coscheduler.cli import say
from coscheduler.cli.run import Recording, whole
from coscheduler.client import Plan
from coscheduler.errors import CoschedulerError, InvalidInput

# What a transcript of one voice has no use for, or a joined one cannot have.
ALONE = {
    "--diarize": "diarize",
    "--max_line_width": "max_line_width",
    "--highlight_words": "highlight_words",
}


@dataclass(frozen=True)
class Voice:
    """A speaker as the transcript names them, and their voice as the separation is told of it."""

    name: str
    description: str


def voices(texts: Iterable[str], plan: Plan) -> tuple[Voice, ...]:
    """Read "NAME=DESCRIPTION" entries, or descriptions, which then are the names too.

    Raises InvalidInput PARAMETER_INVALID for what cannot be done, or not with the rest of `plan`.
    """
    found = []
    for text in texts:
        name, equals, description = text.partition("=")
        found.append(Voice(name.strip(), (description if equals else name).strip()))
        _check(found[-1], plan)
    names = [voice.name for voice in found]
    for name in names:
        if names.count(name) > 1:
            raise _refused(f"two voices are called {name!r}; write NAME=DESCRIPTION")
    asked = [option for option, name in ALONE.items() if plan.transcription.get(name)]
    if found and (asked or plan.clips):
        options = ", ".join(["--speaker"] * bool(plan.clips) + asked)
        raise _refused(
            f"each voice is its own speaker and has subtitles as they are; not {options}"
        )
    return tuple(found)


def clips(texts: Iterable[str]) -> tuple[tuple[str, Path], ...]:
    """Read "NAME=FILE" entries. Raises InvalidInput PARAMETER_INVALID, FILE_MISSING."""
    found = []
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name.strip() and equals and file):
            raise InvalidInput(
                "PARAMETER_INVALID",
                f"--speaker: {text!r} is not NAME=FILE; for example Anna=anna.wav",
                option="--speaker",
            )
        if not Path(file).is_file():
            text = f"--speaker: there is no file {file}; give a clip of {name.strip()}'s voice"
            raise InvalidInput("FILE_MISSING", text, file=file)
        found.append((name.strip(), Path(file)))
    return tuple(found)


def parts(recording: Recording, said: Sequence[Voice], plan: Plan) -> list[Recording]:
    """One job for each voice of a recording."""
    found = []
    for number, voice in enumerate(said):
        only_json = {**plan.transcription, "formats": ("json",)}
        own = replace(plan, separate=voice.description, transcription=only_json)
        folder = recording.folder / str(number)
        found.append(Recording(recording.path, folder, f"{recording.title}: {voice.name}", own))
    return found


def _check(voice: Voice, plan: Plan) -> None:
    replace(plan, separate=voice.description, clips=()).check("audio")
    _check_name(voice.name)


def _check_name(name: str) -> None:
    try:
        Plan(clips=((name, Path()),)).check("audio")
    except InvalidInput:
        raise InvalidInput(
            "PARAMETER_INVALID",
            f"{name!r} cannot stand for a speaker; write NAME=... with a name of up to 100 "
            "characters, without brackets",
            name=name,
        ) from None


def _refused(why: str) -> InvalidInput:
    return InvalidInput("PARAMETER_INVALID", f"--separate: {why}", option="--separate")


def join(
    recording: Recording, made: Sequence[Recording], said: Sequence[Voice], formats: Iterable[str]
) -> None:
    """Write the joined transcript into the recording's folder; nothing where a job has failed."""
    if all(part.state == "SUCCEEDED" for part in made):
        try:
            recording.files = _joined(recording.folder, made, said, formats)
        except CoschedulerError as error:
            recording.error = error
    for part in made:
        part.files.clear()  # they were in a folder of this call


def report(recordings: Sequence[Recording], made: Sequence[Recording]) -> dict[str, Any]:
    """What --json prints: all jobs, the state of the whole, and the files that were written."""
    found = whole(made)
    jobs = found.get("jobs", [found])
    files = [str(path) for recording in recordings for path in recording.files.values()]
    failed = any(recording.error for recording in recordings)
    return {"jobs": jobs, "state": "FAILED" if failed else found["state"], "files": files}


def join_files(
    texts: Iterable[str], output_dir: Path, formats: Iterable[str], as_json: bool
) -> None:
    """`coscheduler transcripts join`: read "[NAME=]FILE" entries, write one transcript.

    Raises InvalidInput FILE_MISSING, TRANSCRIPT_INVALID, PARAMETER_INVALID, OUT_UNWRITABLE.
    """
    joined = transcripts.join([_read(text) for text in texts])
    try:
        files = transcripts.write(output_dir, joined, formats)
    except OSError as error:
        text = f"cannot write to {output_dir}: {error.strerror}"
        raise InvalidInput("OUT_UNWRITABLE", text, out=output_dir) from None
    counts = {"segments": len(joined["segments"]), "language": joined["language"]}
    written = [str(path) for path in files.values()]
    if as_json:
        say.print_json({**counts, "files": written})
        return
    for path in written:
        print(say.printable(path))


def _read(text: str) -> transcripts.Part:
    name, equals, file = text.rpartition("=")
    if equals and not Path(text).is_file():
        _check_name(name)
    else:
        name, file = "", text
    if not Path(file).is_file():
        raise InvalidInput("FILE_MISSING", f"there is no file {file}; give [NAME=]FILE", file=file)
    return transcripts.read(Path(file), name)


def _joined(
    folder: Path, made: Sequence[Recording], said: Sequence[Voice], formats: Iterable[str]
) -> dict[str, Path]:
    heard = [
        transcripts.read(part.files["transcript"], voice.name)
        for part, voice in zip(made, said, strict=True)
    ]
    files = transcripts.write(folder, transcripts.join(heard), formats)
    return {"transcript" if kind == "json" else kind: path for kind, path in files.items()}
