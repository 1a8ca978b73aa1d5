"""`coscheduler transcribe`: who said what and when, with WhisperX's own names for everything."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coscheduler.cli.options import ConfigOfCall, Json
from coscheduler.errors import InvalidInput

if TYPE_CHECKING:
    from coscheduler.cli.run import Recording

ALL = ("json", "srt", "vtt", "txt", "tsv")


class Format(StrEnum):
    """A file to write; "all" are all but aud, as for WhisperX."""

    ALL = "all"
    SRT = "srt"
    VTT = "vtt"
    TXT = "txt"
    TSV = "tsv"
    JSON = "json"
    AUD = "aud"


class Task(StrEnum):
    """What is written down."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Precision(StrEnum):
    """The coarsest that will do."""

    DEFAULT = "default"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    INT8 = "int8"


class Detection(StrEnum):
    """Which model finds the speech."""

    PYANNOTE = "pyannote"
    SILERO = "silero"


class Interpolate(StrEnum):
    """Times of words that cannot be aligned."""

    NEAREST = "nearest"
    LINEAR = "linear"
    IGNORE = "ignore"


def transcribe(
    context: typer.Context,
    audio: Annotated[
        list[Path],
        typer.Argument(
            metavar="AUDIO",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Recordings; of a video file the audio track is taken.",
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "-o", metavar="DIR", help="DIR/<stem>.srt and so on.")
    ] = Path(),
    output_format: Annotated[
        Format, typer.Option("--output_format", "-f", help="What to write; all: not aud.")
    ] = Format.ALL,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Whisper: a folder, hub:owner/name or, of the config's, its size. A daemon that "
            "runs must have it; one that is started for this call takes it. "
            "(default: the config's)",
        ),
    ] = "",
    align_model: Annotated[
        str,
        typer.Option(
            "--align_model", metavar="MODEL", help="One of the config's. (default: the language's)"
        ),
    ] = "",
    diarize_model: Annotated[
        str,
        typer.Option("--diarize_model", metavar="MODEL", help="The config's; another is refused."),
    ] = "",
    separate: Annotated[
        list[str] | None,
        typer.Option(
            "--separate",
            metavar="[NAME=]TEXT",
            help="A voice to pull out and write down by itself, 'Anna=a woman speaking'; what "
            "several say becomes one transcript.",
        ),
    ] = None,
    language: Annotated[
        str, typer.Option("--language", metavar="CODE", help="en, German. (default: detect it)")
    ] = "",
    task: Annotated[
        Task, typer.Option("--task", help="What is said, or what it means in English.")
    ] = Task.TRANSCRIBE,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch_size", metavar="auto|N", help="auto: what the memory allows; N: at most."
        ),
    ] = "auto",
    compute_type: Annotated[
        Precision, typer.Option("--compute_type", help="The coarsest that will do; float: no int8.")
    ] = Precision.DEFAULT,
    beam_size: Annotated[
        int | None,
        typer.Option("--beam_size", min=1, metavar="N", help="At most the config's. (default: it)"),
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", metavar="X", help="Search on for X x beam_size texts.")
    ] = 1.0,
    length_penalty: Annotated[
        float, typer.Option("--length_penalty", metavar="X", help="Exponent of the length.")
    ] = 1.0,
    suppress_tokens: Annotated[
        str, typer.Option("--suppress_tokens", metavar="IDS", help="-1: the model's own list.")
    ] = "-1",
    suppress_numerals: Annotated[
        bool, typer.Option("--suppress_numerals", help="Write numbers as words.")
    ] = False,
    initial_prompt: Annotated[
        str, typer.Option("--initial_prompt", metavar="TEXT", help="Text that goes before.")
    ] = "",
    hotwords: Annotated[
        str, typer.Option("--hotwords", metavar="TEXT", help="Words to expect.")
    ] = "",
    vad_method: Annotated[
        Detection | None,
        typer.Option("--vad_method", help="What finds the speech. (default: the config's)"),
    ] = None,
    vad_onset: Annotated[
        float | None,
        typer.Option("--vad_onset", metavar="P", help="Speech begins. (default: the config's)"),
    ] = None,
    vad_offset: Annotated[
        float | None,
        typer.Option("--vad_offset", metavar="P", help="Speech ends. (default: the config's)"),
    ] = None,
    chunk_size: Annotated[
        float | None,
        typer.Option(
            "--chunk_size",
            min=1,
            max=30,
            metavar="SECONDS",
            help="The longest stretch at once. (default: the config's)",
        ),
    ] = None,
    no_align: Annotated[bool, typer.Option("--no_align", help="No word times.")] = False,
    return_char_alignments: Annotated[
        bool, typer.Option("--return_char_alignments", help="Times of characters in the json.")
    ] = False,
    interpolate_method: Annotated[
        Interpolate, typer.Option("--interpolate_method", help="For words that cannot be aligned.")
    ] = Interpolate.NEAREST,
    diarize: Annotated[bool, typer.Option("--diarize", help="Tell the speakers apart.")] = False,
    num_speakers: Annotated[
        int, typer.Option("--num_speakers", min=0, metavar="N", help="How many there are.")
    ] = 0,
    min_speakers: Annotated[
        int, typer.Option("--min_speakers", min=0, metavar="N", help="How many at least.")
    ] = 0,
    max_speakers: Annotated[
        int, typer.Option("--max_speakers", min=0, metavar="N", help="How many at most.")
    ] = 0,
    speaker_embeddings: Annotated[
        bool, typer.Option("--speaker_embeddings", help="A vector for each voice, in the json.")
    ] = False,
    speaker: Annotated[
        list[str] | None,
        typer.Option(
            "--speaker",
            metavar="NAME=FILE",
            help="Name the speaker who sounds as in this clip; for several give it several times. "
            "Means --diarize.",
        ),
    ] = None,
    speaker_distance: Annotated[
        float,
        typer.Option(
            "--speaker_distance", metavar="X", help="Greatest cosine distance from a clip, 0 to 2."
        ),
    ] = 0.5,
    max_line_width: Annotated[
        int | None,
        typer.Option("--max_line_width", min=1, metavar="N", help="Characters in a line."),
    ] = None,
    max_line_count: Annotated[
        int | None,
        typer.Option("--max_line_count", min=1, metavar="N", help="Lines in a subtitle."),
    ] = None,
    highlight_words: Annotated[
        bool, typer.Option("--highlight_words", help="Underline each word as it is said.")
    ] = False,
    config: ConfigOfCall = None,
    as_json: Json = False,
) -> None:
    """Write down recordings, all at once: DIR/<stem>.json, .srt, .vtt, .txt, .tsv, .metrics.json.

    Models are those of the config, if nothing else is said. With --speaker the speakers that
    are told apart have names; with --separate each voice is pulled out and written down by itself,
    also where several speak at once, and one transcript is made of all. What WhisperX accepts and
    ignores (--temperature, --best_of, ...) is no option here. Ctrl-C cancels the jobs. Exit status:
    0 done, 1 a job failed, 2 wrong usage, 3 no daemon.
    """
    from coscheduler.cli import private, say, voices
    from coscheduler.cli import run as runs
    from coscheduler.cli.view import Watching, outcome
    from coscheduler.client import Plan

    formats = chosen(output_format)
    transcription = {
        "model": _place(model),
        "align_model": _place(align_model),
        "diarize_model": _place(diarize_model),
        "formats": formats,
        "task": task.value,
        "batch_size_max": _batch_size(batch_size),
        "beam_size": beam_size,
        "patience": patience,
        "length_penalty": length_penalty,
        "suppress_tokens": _numbers(suppress_tokens),
        "suppress_numerals": suppress_numerals,
        "initial_prompt": initial_prompt,
        "hotwords": hotwords,
        "vad_method": vad_method.value if vad_method else None,
        "vad_onset": vad_onset,
        "vad_offset": vad_offset,
        "chunk_ms": None if chunk_size is None else round(1000 * chunk_size),
        "align": not no_align,
        "char_alignments": return_char_alignments,
        "interpolate_method": interpolate_method.value,
        "diarize": diarize or bool(speaker),
        "speakers": num_speakers,
        "speakers_min": min_speakers,
        "speakers_max": max_speakers,
        "speaker_embeddings": speaker_embeddings,
        "speaker_distance_max": speaker_distance,
        "max_line_width": max_line_width,
        "max_line_count": max_line_count,
        "highlight_words": highlight_words,
    }
    plan = Plan(
        language=language,
        transcription={name: value for name, value in transcription.items() if value is not None},
        quality_min=0 if compute_type in (Precision.FLOAT16, Precision.FLOAT32) else None,
        clips=voices.clips(speaker or ()),
    )
    said = voices.voices(separate or (), plan)
    recordings = runs.prepare(audio, output_dir, plan)
    console = say.console(as_json=as_json)
    with tempfile.TemporaryDirectory(prefix=".coscheduler-", dir=output_dir) as scratch:
        for recording in recordings:
            recording.folder = Path(scratch) / recording.folder.name
        made = [voices.parts(one, said, plan) if said else [one] for one in recordings]
        everything = [part for parts in made for part in parts]
        own = ["--whisper", _place(model)] if model else []
        with private.reachable(context.obj, config, own) as address, Watching(console) as view:
            interrupted = asyncio.run(runs.run_all(address, everything, plan, view))
        for recording, parts in zip(recordings, made, strict=True):
            if said:
                voices.join(recording, parts, said, formats)
            place(recording, output_dir, formats, parts if said else ())
    for part in everything:
        console.print(outcome(part.metrics))
    if as_json:
        say.print_json(voices.report(recordings, everything) if said else runs.whole(recordings))
    raise typer.Exit(runs.exit_code(everything, interrupted))


def chosen(output_format: Format) -> tuple[str, ...]:
    """The formats that are meant."""
    return ALL if output_format is Format.ALL else (output_format.value,)


def place(
    recording: "Recording",
    output_dir: Path,
    formats: Iterable[str],
    parts: Sequence["Recording"] = (),
) -> None:
    """Move what was fetched to where WhisperX writes it, named after the recording.

    `parts` are the jobs of its voices, where each was transcribed by itself.
    """
    from coscheduler.cli import voices

    name, found = recording.folder.name, recording.files
    wanted = {"transcript" if kind == "json" else kind for kind in formats}
    recording.files = {
        role: output_dir / f"{name}{path.suffix}" for role, path in found.items() if role in wanted
    }
    for role, target in recording.files.items():
        shutil.move(found[role], target)
    if "metrics" in found or parts:
        target = recording.files["metrics"] = output_dir / f"{name}.metrics.json"
        metrics = voices.report([recording], parts) if parts else recording.metrics
        target.write_text(json.dumps(metrics, indent=2) + "\n", encoding="ascii")


def _place(model: str) -> str:
    """A model as a daemon in another folder finds it."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    return _number("--batch_size", text)


def _numbers(text: str) -> list[int]:
    return [_number("--suppress_tokens", part.strip()) for part in text.split(",")]


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(
            "PARAMETER_INVALID", f"{option}: {text!r} is no whole number", option=option
        ) from None
