"""Run the engine and the whisperx package itself on the same recordings, with sockets refused.

Prints one JSON object: what each of them made. In a process of its own: whisperx leaves threads.
"""

import io
import json
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coscheduler import audio
from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import StageKind
from coscheduler.engines.base import Task
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.stages import TranscribeParameters

DEMO = Path(audio.__file__).parent / "demo"
PLANNING, DIARIZER = DEMO / "planning.flac", DEMO / "trained" / "diarizer-demo"
FORMATS = ("json", "srt", "vtt", "txt", "tsv", "aud")


attempts: list[str] = []  # at the network; a thread that is refused may keep it to itself


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        attempts.append(f"{event} {arguments[1:]}")
        raise PermissionError(f"{event} {arguments[1:]}")


def run(
    engine: TranscriptionEngine,
    recording: Path,
    clips: Mapping[str, Path] | None = None,
    **parameters: Any,
) -> dict[str, str]:
    """Transcribe; the files by format. `clips` are artifacts that the parameters name."""
    duration_ms = audio.probe(recording, 0, 3_600_000).duration_ms
    wanted = {"formats": FORMATS, **parameters}
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            "jobs/1", StageKind.TRANSCRIBE, wanted, recording, Path(folder), duration_ms,
            artifact_paths=clips or {},
        )  # fmt: skip
        for _ in engine.slices(task):
            pass
        return {
            kind: (Path(folder) / f"transcript.{kind}").read_text(encoding="utf-8")
            for kind in FORMATS
        }


def original(
    chosen: TranscriptionSettings, recording: Path, wanted: TranscribeParameters, diarizer: Path
) -> dict[str, Any]:
    """The result of the package's own functions with the same models and settings."""
    import whisperx

    pipeline = whisperx.load_model(
        str(chosen.model),
        "cpu",
        compute_type="float32",
        language=wanted.language or None,
        task=wanted.task,
        asr_options={
            "beam_size": wanted.beam_size or chosen.beam_size,
            "patience": wanted.patience,
            "length_penalty": wanted.length_penalty,
            "suppress_tokens": list(wanted.suppress_tokens),
            "suppress_numerals": wanted.suppress_numerals,
            "initial_prompt": wanted.initial_prompt or None,
            "hotwords": wanted.hotwords or None,
        },
        vad_options={
            "vad_onset": wanted.vad_onset or chosen.vad_onset,
            "vad_offset": wanted.vad_offset or chosen.vad_offset,
        },
        threads=1,
    )
    if wanted.vad_method == "silero":
        pipeline.vad_model = silero(wanted, chosen)
    samples = audio.read_mono(recording, 16_000)
    chunk_seconds = (wanted.chunk_ms or chosen.chunk_ms) / 1000
    said = pipeline.transcribe(samples, batch_size=1, chunk_size=chunk_seconds)
    result: dict[str, Any] = dict(said)
    if wanted.times_words:
        aligner = str(chosen.aligners[said["language"]])
        align_model, metadata = whisperx.load_align_model(
            said["language"], "cpu", model_name=aligner
        )
        aligned = whisperx.align(
            said["segments"],
            align_model,
            metadata,
            samples,
            "cpu",
            interpolate_method=wanted.interpolate_method,
            return_char_alignments=wanted.char_alignments,
        )
        result = {**aligned, "language": said["language"]}
    if wanted.diarize:
        result = with_speakers(result, samples, wanted, diarizer)
    return result


def silero(wanted: TranscribeParameters, chosen: TranscriptionSettings) -> Any:
    """WhisperX's Silero, with the model that faster-whisper brings instead of a download."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps
    from whisperx.diarize import Segment
    from whisperx.vads import Vad

    options = VadOptions(
        threshold=wanted.vad_onset or chosen.vad_onset,
        min_speech_duration_ms=250,
        max_speech_duration_s=(wanted.chunk_ms or chosen.chunk_ms) / 1000,
        min_silence_duration_ms=100,
        speech_pad_ms=30,
    )

    class Bundled(Vad):  # type: ignore[misc]
        def __call__(self, heard: Mapping[str, Any]) -> list[Any]:
            spans = get_speech_timestamps(heard["waveform"], options)
            return [Segment(span["start"] / 16_000, span["end"] / 16_000) for span in spans]

        @staticmethod
        def preprocess_audio(samples: Any) -> Any:
            return samples

    return Bundled(0.5)


def with_speakers(
    result: dict[str, Any], samples: Any, wanted: TranscribeParameters, folder: Path
) -> dict[str, Any]:
    """Speakers by WhisperX's own pipeline, with its batches as small as the engine's."""
    from whisperx.diarize import DiarizationPipeline, assign_word_speakers

    pipeline = DiarizationPipeline(str(folder), device="cpu")
    pipeline.model.embedding_batch_size = pipeline.model.segmentation_batch_size = 1
    turns, embeddings = pipeline(
        samples,
        num_speakers=wanted.speakers or None,
        min_speakers=wanted.speakers_min or None,
        max_speakers=wanted.speakers_max or None,
        return_embeddings=True,
    )
    named: dict[str, Any] = assign_word_speakers(
        turns, result, embeddings if wanted.speaker_embeddings else None
    )
    return named


def written(result: dict[str, Any], wanted: TranscribeParameters) -> dict[str, str]:
    """The result by whisperx's writers."""
    from whisperx.utils import get_writer

    layout = {
        "max_line_width": wanted.max_line_width,
        "max_line_count": wanted.max_line_count,
        "highlight_words": wanted.highlight_words,
    }
    found = {}
    for kind in FORMATS:
        file = io.StringIO()
        get_writer(kind, ".").write_result(result, file=file, options=layout)
        found[kind] = file.getvalue()
    return found


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


def in_blocks(recording: Path) -> dict[str, Any]:
    """Stretches of speech by Silero in one block and in blocks of five seconds."""
    from coscheduler.engines.transcription import silero, speech

    samples = audio.read_mono(recording, 16_000)
    found = {}
    for name, seconds in (("whole", 600), ("blocks", 5)):
        steps = silero.chunks(samples, speech.Thresholds(0.5, 0.363, 2.0), seconds)
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            found[name] = [(chunk.start, chunk.end) for chunk in stop.value]
    return found


def with_names(
    engine: TranscriptionEngine, recording: Path, clips: Mapping[str, Path], **wanted: Any
) -> dict[str, str]:
    """Known speakers, with one clip for each name."""
    paths = {f"artifacts/{number:032x}": path for number, path in enumerate(clips.values())}
    known = [
        {"name": name, "artifact": artifact} for name, artifact in zip(clips, paths, strict=True)
    ]
    quick = {"align": False, "vad_method": "silero", "beam_size": 1, **wanted}
    return run(engine, recording, paths, known_speakers=known, **quick)


def names(settings: Settings, engine: TranscriptionEngine, folder: Path) -> dict[str, Any]:
    """Speakers named from clips: of a pyannote pipeline, and of the shipped one."""
    samples = audio.read_mono(PLANNING, 16_000)
    places = {"talk": (0.0, 13.7), "Anna": (13.8, 16.8), "Emma": (17.0, 22.3)}
    for name, (start, end) in places.items():
        part = samples[int(start * 16_000) : int(end * 16_000)]
        audio.write_wav(folder / f"{name}.wav", part, 16_000)
    talk, anna = folder / "talk.wav", {"Anna": folder / "Anna.wav"}
    found = {"pyannote": with_names(engine, talk, anna)}
    engine.unload()
    assert settings.transcription is not None
    chosen = settings.transcription.model_copy(update={"diarizer": DIARIZER})
    shipped = TranscriptionEngine(settings.model_copy(update={"transcription": chosen}))
    shipped.load(shipped.describe().options[0], lambda done, total: None)
    emma = {"Emma": folder / "Emma.wav"}
    pieces = {"chunk_ms": 3000}
    found["both"] = with_names(shipped, talk, {**emma, **anna}, speaker_embeddings=True, **pieces)
    found["one"] = with_names(shipped, talk, emma, **pieces)
    return found


def main() -> None:
    from tests.engines.transcription import tiny_diarizer

    settings = Settings.model_validate_json(sys.argv[1])
    cases = json.loads(sys.argv[2])
    assert settings.transcription is not None
    chosen = settings.transcription
    assert chosen.diarizer is not None
    sys.addaudithook(refuse_network)
    tiny_diarizer.write(chosen.diarizer)
    engine = TranscriptionEngine(settings)
    engine.start()
    engine.load(engine.describe().options[-1], lambda done, total: None)  # all comes and goes
    answer: dict[str, Any] = {"cases": []}
    for case in cases:
        recording, wanted = Path(case["recording"]), case["parameters"]
        checked = TranscribeParameters.model_validate(wanted)
        ours = run(engine, recording, **wanted)  # first: it has the sentence splitters' files
        theirs = written(original(chosen, recording, checked, chosen.diarizer), checked)
        answer["cases"].append({"ours": ours, "theirs": theirs})
    recording = Path(cases[0]["recording"])
    answer["again"] = run(engine, recording, **cases[0]["parameters"])
    answer["chunks"] = detected(engine, recording)
    answer["silero"] = in_blocks(recording)
    answer["names"] = names(settings, engine, chosen.diarizer.parent)
    answer["attempts"] = attempts
    answer["threads"] = [thread.name for thread in threading.enumerate()]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
