"""The parameters of a stage, as the dict that `coscheduler.stages` checks <-> the wire's messages.

A field that the wire leaves out is left out of the dict, so that its default is stated once, there.
"""

from collections.abc import Mapping
from typing import Any

from coscheduler.core.model import StageKind
from coscheduler.errors import InvalidInput
from coscheduler.rpc.convert.names import (
    DETECTION,
    FORMAT,
    INTERPOLATION,
    MODE,
    OVERFLOW,
    RANKING,
    RESIDUAL,
    SIGN,
    TASK,
)
from coscheduler.v1 import job_pb2


def put_parameters(stage: job_pb2.Stage, kind: StageKind, values: Mapping[str, Any]) -> None:
    """Set the message's `parameters`; `values` were checked by `stages.parse`."""
    if kind is StageKind.SEPARATE:
        stage.separate.CopyFrom(_separate_to_wire(values))
    elif kind is StageKind.TRANSCRIBE:
        stage.transcribe.CopyFrom(_transcribe_to_wire(values))
    else:
        stage.analyze.CopyFrom(_analyze_to_wire(values))


def get_parameters(stage: job_pb2.Stage) -> tuple[StageKind, dict[str, Any]]:
    """The kind of a stage and its parameters. Raises InvalidInput STAGE_EMPTY or FORMAT_UNKNOWN."""
    which = stage.WhichOneof("parameters")
    if which == "separate":
        return StageKind.SEPARATE, _separate_from_wire(stage.separate)
    if which == "transcribe":
        return StageKind.TRANSCRIBE, _transcribe_from_wire(stage.transcribe)
    if which == "analyze":
        return StageKind.ANALYZE, _analyze_from_wire(stage.analyze)
    raise InvalidInput(
        "STAGE_EMPTY", "a stage has no parameters; set one of separate, transcribe, analyze"
    )


def _separate_to_wire(values: Mapping[str, Any]) -> job_pb2.SeparateParameters:
    message = job_pb2.SeparateParameters(
        prompt=values["prompt"],
        seed=values.get("seed", 0),
        candidate_count=values.get("candidates", 0),
        redraw_max_count=values.get("redraws_max"),
        sample_rate_hz=values.get("sample_rate_hz") or 0,
        watermark=values.get("watermark"),
    )
    for span in values.get("spans", ()):
        sign = SIGN.to_wire(span["sign"])
        message.spans.add(sign=sign, start_ms=span["start_ms"], end_ms=span["end_ms"])
    if "ranking" in values:
        message.ranking = RANKING.to_wire(values["ranking"])
    if "residual" in values:
        message.residual = RESIDUAL.to_wire(values["residual"])
    return message


def _separate_from_wire(message: job_pb2.SeparateParameters) -> dict[str, Any]:
    values: dict[str, Any] = {"prompt": message.prompt, "seed": message.seed}
    if message.spans:
        values["spans"] = [
            {
                "sign": SIGN.from_wire(span.sign or job_pb2.TimeSpan.SIGN_PRESENT),
                "start_ms": span.start_ms,
                "end_ms": span.end_ms,
            }
            for span in message.spans
        ]
    if message.candidate_count:
        values["candidates"] = message.candidate_count
    if message.HasField("redraw_max_count"):
        values["redraws_max"] = message.redraw_max_count
    if message.ranking:
        values["ranking"] = RANKING.from_wire(message.ranking)
    if message.residual:
        values["residual"] = RESIDUAL.from_wire(message.residual)
    if message.sample_rate_hz:
        values["sample_rate_hz"] = message.sample_rate_hz
    if message.HasField("watermark"):
        values["watermark"] = message.watermark
    return values


# Fields of a transcription by their names on the wire: those that may be absent there, and those
# whose zero is their default.
_OPTIONAL = {
    "align": "align",
    "diarize": "diarize",
    "batch_size_max": "batch_max_count",
    "beam_size": "beam_count",
    "patience": "patience",
    "length_penalty": "length_penalty",
    "vad_onset": "vad_onset",
    "vad_offset": "vad_offset",
    "chunk_ms": "chunk_ms",
    "max_line_width": "line_character_max_count",
    "max_line_count": "line_max_count",
    "speaker_distance_max": "speaker_distance_max",
}
_PLAIN = {
    "model": "model",
    "align_model": "align_model",
    "diarize_model": "diarize_model",
    "language": "language",
    "suppress_numerals": "suppress_numerals",
    "initial_prompt": "initial_prompt",
    "hotwords": "hotwords",
    "char_alignments": "char_alignments",
    "speakers": "speaker_count",
    "speakers_min": "speakers_min_count",
    "speakers_max": "speakers_max_count",
    "speaker_embeddings": "speaker_embeddings",
    "highlight_words": "highlight_words",
}


def _transcribe_to_wire(values: Mapping[str, Any]) -> job_pb2.TranscribeParameters:
    names = _OPTIONAL | _PLAIN
    given = {names[name]: value for name, value in values.items() if name in names}
    message = job_pb2.TranscribeParameters(
        formats=[FORMAT.to_wire(entry) for entry in values.get("formats", ())],
        suppress_tokens=values.get("suppress_tokens", ()),
        **given,
    )
    if "task" in values:
        message.task = TASK.to_wire(values["task"])
    if values.get("vad_method"):
        message.vad_method = DETECTION.to_wire(values["vad_method"])
    if "interpolate_method" in values:
        message.interpolate_method = INTERPOLATION.to_wire(values["interpolate_method"])
    for known in values.get("known_speakers", ()):
        message.known_speakers.add(name=known["name"], artifact=known["artifact"])
    return message


def _transcribe_from_wire(message: job_pb2.TranscribeParameters) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(message, field) for name, field in _PLAIN.items()}
    present = {entry.name for entry, _ in message.ListFields()}
    values |= {
        name: getattr(message, field) for name, field in _OPTIONAL.items() if field in present
    }
    if message.formats:
        values["formats"] = [FORMAT.from_wire(entry) for entry in message.formats]
    if message.suppress_tokens:
        values["suppress_tokens"] = list(message.suppress_tokens)
    if message.task:
        values["task"] = TASK.from_wire(message.task)
    if message.vad_method:
        values["vad_method"] = DETECTION.from_wire(message.vad_method)
    if message.interpolate_method:
        values["interpolate_method"] = INTERPOLATION.from_wire(message.interpolate_method)
    if message.known_speakers:
        values["known_speakers"] = [
            {"name": known.name, "artifact": known.artifact} for known in message.known_speakers
        ]
    return values


def _analyze_to_wire(values: Mapping[str, Any]) -> job_pb2.AnalyzeParameters:
    given = (name for name in ("template", "template_text", "prompt") if values.get(name))
    instruction = next(given, "prompt")
    message = job_pb2.AnalyzeParameters(
        tokens_max_count=values.get("tokens_max"),
        seed=values.get("seed", 0),
        variables=values.get("variables", {}),
        overlap_turn_count=values.get("overlap_turns"),
        **{instruction: values.get(instruction, "")},
    )
    if "overflow" in values:
        message.overflow = OVERFLOW.to_wire(values["overflow"])
    if "mode" in values:
        message.mode = MODE.to_wire(values["mode"])
    return message


def _analyze_from_wire(message: job_pb2.AnalyzeParameters) -> dict[str, Any]:
    values: dict[str, Any] = {
        "template": message.template,
        "prompt": message.prompt,
        "template_text": message.template_text,
        "seed": message.seed,
        "variables": dict(message.variables),
    }
    if message.overflow:
        values["overflow"] = OVERFLOW.from_wire(message.overflow)
    if message.mode:
        values["mode"] = MODE.from_wire(message.mode)
    if message.HasField("overlap_turn_count"):
        values["overlap_turns"] = message.overlap_turn_count
    if message.HasField("tokens_max_count"):
        values["tokens_max"] = message.tokens_max_count
    return values
