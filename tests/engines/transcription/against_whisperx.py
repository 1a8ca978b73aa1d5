"""Run the engine and the whisperx package itself on the same recording, with sockets refused.

Prints one JSON object: what each of them made. In a process of its own: whisperx leaves threads.
"""

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coscheduler import audio
from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import StageKind
from coscheduler.engines.base import Task
from coscheduler.engines.transcription.engine import TranscriptionEngine

FORMATS = ("json", "srt", "vtt", "txt", "tsv")
OPTIONS = {"max_line_width": None, "max_line_count": None, "highlight_words": False}


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        raise PermissionError(f"{event} {arguments[1:]}")


def run(engine: TranscriptionEngine, recording: Path, **parameters: Any) -> Iterator[str]:
    """Transcribe; the files in the order of FORMATS."""
    duration_ms = audio.probe(recording, 0, 3_600_000).duration_ms
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            "jobs/1", StageKind.TRANSCRIBE, parameters, recording, Path(folder), duration_ms
        )
        for _ in engine.slices(task):
            pass
        for kind in FORMATS:
            yield (Path(folder) / f"transcript.{kind}").read_text(encoding="utf-8")


def original(chosen: TranscriptionSettings, recording: Path) -> dict[str, Any]:
    """The result of the package's own functions with the same models and settings."""
    import whisperx

    pipeline = whisperx.load_model(
        str(chosen.model),
        "cpu",
        compute_type="float32",
        vad_options={"vad_onset": chosen.vad_onset, "vad_offset": chosen.vad_offset},
        threads=1,
    )
    samples = audio.read_mono(recording, 16_000)
    said = pipeline.transcribe(samples, batch_size=1, chunk_size=chosen.chunk_ms // 1000)
    aligner = str(chosen.aligners["en"])
    align_model, metadata = whisperx.load_align_model("en", "cpu", model_name=aligner)
    aligned = whisperx.align(said["segments"], align_model, metadata, samples, "cpu")
    result: dict[str, Any] = {**aligned, "language": said["language"]}
    return result


def written(result: dict[str, Any]) -> Iterator[str]:
    """The result by whisperx's writers, in the order of FORMATS."""
    from whisperx.utils import get_writer

    for kind in FORMATS:
        file = io.StringIO()
        get_writer(kind, ".").write_result(result, file=file, options=OPTIONS)
        yield file.getvalue()


def detected(engine: TranscriptionEngine, recording: Path) -> dict[str, Any]:
    """The chunks of our speech detection and of the original's, for several lengths."""
    from whisperx.audio import SAMPLE_RATE

    from coscheduler.engines.transcription import speech

    assert engine._loaded is not None
    vad, whole = engine._loaded.pipeline.vad_model, audio.read_mono(recording, 16_000)
    ours, theirs = [], []
    for seconds in (2, 5, 6.5, 8):  # shorter than a window, one, whole steps, more than a batch
        samples = whole[: int(seconds * SAMPLE_RATE)]
        steps = speech.chunks(vad, samples, speech.Thresholds(0.5, 0.363, 2.0))
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            ours.append([(chunk.start, chunk.end) for chunk in stop.value])
        waveform = vad.preprocess_audio(samples)
        scores = vad({"waveform": waveform, "sample_rate": SAMPLE_RATE})
        merged = vad.merge_chunks(scores, 2.0, onset=0.5, offset=0.363)
        theirs.append([(chunk["start"], chunk["end"]) for chunk in merged])
    return {"ours": ours, "theirs": theirs}


def main() -> None:
    settings = Settings.model_validate_json(sys.argv[1])
    recording, diarizer = Path(sys.argv[2]), Path(sys.argv[3])
    sys.addaudithook(refuse_network)
    assert settings.transcription is not None
    engine = TranscriptionEngine(settings)
    engine.start()
    option = engine.describe().options[0]
    engine.load(option, lambda done, total: None)
    answer: dict[str, Any] = {"ours": list(run(engine, recording))}
    answer["chunks"] = detected(engine, recording)
    engine.unload()
    answer["theirs"] = list(written(original(settings.transcription, recording)))
    answer["speakers"] = with_speakers(settings, recording, diarizer)
    print(json.dumps(answer))


def with_speakers(settings: Settings, recording: Path, folder: Path) -> dict[str, Any]:
    from tests.engines.transcription import tiny_diarizer

    tiny_diarizer.write(folder)
    assert settings.transcription is not None
    section = settings.transcription.model_copy(update={"diarizer": folder})
    engine = TranscriptionEngine(settings.model_copy(update={"transcription": section}))
    (option, *_) = engine.describe().options
    engine.load(option, lambda done, total: None)
    files = dict(zip(FORMATS, run(engine, recording), strict=True))
    plain = list(run(engine, recording, diarize=False))
    engine.unload()
    return {"json": json.loads(files["json"]), "txt": files["txt"], "plain": plain}


main()
