"""The parameters of each stage, checked once at the edge: no torch, no grpc.

The wire, the command line and the engines all mean these fields. Unknown fields are refused.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from coscheduler.core.model import StageKind
from coscheduler.errors import InvalidInput

TranscriptFormat = Literal["json", "srt", "vtt", "txt", "tsv", "aud"]
SpeechTask = Literal["transcribe", "translate"]
SpeechDetection = Literal["pyannote", "silero"]
Interpolation = Literal["nearest", "linear", "ignore"]
Probability = Annotated[float, Field(gt=0, lt=1)]
FORMATS: tuple[TranscriptFormat, ...] = ("json", "srt", "vtt", "txt", "tsv")
TEMPLATES: tuple[str, ...] = (
    "actions", "chapters", "decisions", "minutes", "questions", "summary", "translate", "triage",
)  # fmt: skip
SpanSign = Literal["+", "-"]
Ranking = Literal["consistency"]
Residual = Literal["generated", "mixture-minus-target"]
Overflow = Literal["split", "fold", "refuse"]
PieceMode = Literal["map", "refine", "tree"]


ModelName = Annotated[str, Field(max_length=1000)]
VariableText = Annotated[str, Field(max_length=2000)]
# It stands in brackets before what is said; <, > and line ends would break subtitles.
SpeakerName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\[\]<>]{1,100}$")]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeSpan(_Parameters):
    """Where in the recording the sound is ("+") or is not ("-"). "6.3-7.0" reads as "+", in
    seconds; so does "+6.3-7.0"; "-6.3-7.0" says that it is not there.
    """

    sign: SpanSign = "+"
    start_ms: Annotated[int, Field(ge=0)]
    end_ms: Annotated[int, Field(ge=0)]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"([+-]?)(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", value.strip())
        if found is None:
            raise ValueError(f'{value!r} is no time span; write "6.3-7.0" or "-6.3-7.0"')
        start_ms, end_ms = (round(1000 * float(text)) for text in found.groups()[1:])
        return {"sign": found[1] or "+", "start_ms": start_ms, "end_ms": end_ms}

    @model_validator(mode="after")
    def _forwards(self) -> "TimeSpan":
        if self.end_ms <= self.start_ms:
            raise ValueError(
                f"a span must end ({self.end_ms} ms) after it begins ({self.start_ms})"
            )
        return self


class SeparateParameters(_Parameters):
    """Pull the sound that `prompt` describes out of the recording.

    The model hears the mean over the channels; target and residual are mono. `candidates` are drawn
    with the seeds from `seed` on, and the one that `ranking` puts first is kept; "consistency" is
    how well target and residual together rebuild the recording. While every target is empty, up to
    `redraws_max` further seeds are tried. A residual of "mixture-minus-target" adds up with the
    target to the recording exactly; the generated one may sound cleaner. `watermark`: mark target
    and generated residual inaudibly as made by the model, as Meta's code always does; the 16 bits
    of the mark follow from the seed. `sample_rate_hz` None: the model's own rate, which is 48 kHz
    for the published ones.
    """

    prompt: Annotated[str, Field(min_length=1, max_length=2000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    spans: Annotated[tuple[TimeSpan, ...], Field(max_length=64)] = ()
    candidates: Annotated[int, Field(ge=1, le=16)] = 1
    ranking: Ranking = "consistency"
    redraws_max: Annotated[int, Field(ge=0, le=4)] = 1
    residual: Residual = "generated"
    watermark: bool = True
    sample_rate_hz: Annotated[int, Field(ge=8_000, le=192_000)] | None = None


class KnownSpeaker(_Parameters):
    """Somebody's name, and a recording of nobody but them, as an artifact."""

    name: SpeakerName
    artifact: Annotated[str, Field(pattern=r"^artifacts/[0-9a-f]{32}$")]

    @field_validator("name")
    @classmethod
    def _no_label(cls, name: str) -> str:
        if not name.strip() or re.fullmatch(r"SPEAKER_\d+", name):
            raise ValueError(f"{name!r} is no name: labels like SPEAKER_00 are of unknown speakers")
        return name


class TranscribeParameters(_Parameters):
    """Who said what, when. `language` is a code or an English name; empty means: detect it. None:
    as the config has it.

    What WhisperX accepts and ignores (temperature and its fallbacks, best_of) is not here.
    `model`, `align_model` and `diarize_model` name models that the config has, by path, folder or
    repository; "" is the config's own, of aligners that of the language.
    `batch_size_max` bounds the batch that the memory allows; `beam_size` may not exceed that of the
    config, which is what memory is planned for. A translation is into English and has no word
    times; lines of subtitles are laid out by word, so that their options need word times.

    `known_speakers` are looked for among the speakers: each clip's voice is compared with theirs by
    cosine distance, and whoever is nearer than `speaker_distance_max` has the name. Several clips
    of one name are averaged.
    """

    model: ModelName = ""
    align_model: ModelName = ""
    diarize_model: ModelName = ""
    language: Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z ]{1,30})?$")] = ""
    task: SpeechTask = "transcribe"
    formats: tuple[TranscriptFormat, ...] = FORMATS
    batch_size_max: Annotated[int, Field(ge=1, le=256)] | None = None
    beam_size: Annotated[int, Field(ge=1, le=64)] | None = None
    patience: Annotated[float, Field(gt=0, le=10)] = 1.0
    length_penalty: Annotated[float, Field(ge=0, le=10)] = 1.0
    suppress_tokens: Annotated[tuple[int, ...], Field(max_length=1000)] = (-1,)
    suppress_numerals: bool = False
    initial_prompt: Annotated[str, Field(max_length=2000)] = ""
    hotwords: Annotated[str, Field(max_length=2000)] = ""
    vad_method: SpeechDetection | None = None
    vad_onset: Probability | None = None
    vad_offset: Probability | None = None
    chunk_ms: Annotated[int, Field(ge=1000, le=30_000)] | None = None
    align: bool = True
    char_alignments: bool = False
    interpolate_method: Interpolation = "nearest"
    diarize: bool = True  # only where a diarization model is configured
    speakers: Annotated[int, Field(ge=0, le=64)] = 0  # 0 = not known, here and below
    speakers_min: Annotated[int, Field(ge=0, le=64)] = 0
    speakers_max: Annotated[int, Field(ge=0, le=64)] = 0
    speaker_embeddings: bool = False
    known_speakers: Annotated[tuple[KnownSpeaker, ...], Field(max_length=64)] = ()
    speaker_distance_max: Annotated[float, Field(gt=0, le=2)] = 0.5
    max_line_width: Annotated[int, Field(ge=1, le=1000)] | None = None  # characters
    max_line_count: Annotated[int, Field(ge=1, le=100)] | None = None
    highlight_words: bool = False

    @property
    def times_words(self) -> bool:
        """Whether words are to have times of their own."""
        return self.align and self.task == "transcribe"

    @model_validator(mode="after")
    def _layout_needs_words(self) -> "TranscribeParameters":
        laid_out = self.max_line_width or self.max_line_count or self.highlight_words
        if laid_out and not self.times_words:
            raise ValueError("lines and highlighted words need word times: align, and no translate")
        if self.max_line_count and not self.max_line_width:
            raise ValueError("max_line_count says nothing without max_line_width")
        return self

    @model_validator(mode="after")
    def _names_need_speakers(self) -> "TranscribeParameters":
        if self.known_speakers and not self.diarize:
            raise ValueError("known speakers are found among the speakers: diarize must be true")
        return self

    @model_validator(mode="after")
    def _speakers_in_order(self) -> "TranscribeParameters":
        if self.speakers and (self.speakers_min or self.speakers_max):
            raise ValueError("give either the number of speakers or bounds for it")
        if self.speakers_max and self.speakers_min > self.speakers_max:
            raise ValueError(
                f"speakers_min {self.speakers_min} is above speakers_max {self.speakers_max}"
            )
        return self


class AnalyzeParameters(_Parameters):
    """Make sense of a transcript: a template's name, a prompt, or a template of one's own.

    `overflow` says what happens to a transcript that does not fit the context: it is read in pieces
    ("split"), its oldest turns are folded into notes ("fold"), or it is refused ("refuse"). `mode`
    says how pieces become one answer: merged at once as far as they fit ("map"), one after the
    other, each bringing the answer up to date ("refine"), or merged in small groups ("tree").
    """

    template: str = ""
    prompt: Annotated[str, Field(max_length=20_000)] = ""
    template_text: Annotated[str, Field(max_length=100_000)] = ""  # a template file's content
    variables: Annotated[dict[str, VariableText], Field(max_length=16)] = {}
    tokens_max: Annotated[int, Field(ge=1, le=32_768)] | None = None  # None = the template's own
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    overflow: Overflow = "split"
    mode: PieceMode = "map"
    overlap_turns: Annotated[int, Field(ge=0, le=50)] = 2  # turns that two pieces have in common

    @model_validator(mode="after")
    def _one_of(self) -> "AnalyzeParameters":
        given = [self.template, self.prompt, self.template_text]
        if sum(map(bool, given)) != 1:
            raise ValueError("give either a template or a prompt")
        return self


MODEL_OF: dict[StageKind, type[_Parameters]] = {
    StageKind.SEPARATE: SeparateParameters,
    StageKind.TRANSCRIBE: TranscribeParameters,
    StageKind.ANALYZE: AnalyzeParameters,
}


def parse(kind: StageKind, values: dict[str, Any]) -> _Parameters:
    """Check a stage's parameters. Raises InvalidInput PARAMETER_INVALID or TEMPLATE_UNKNOWN."""
    try:
        parsed = MODEL_OF[kind].model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "parameters"
        raise InvalidInput(
            "PARAMETER_INVALID", f"stage {kind}: {where}: {first['msg']}", stage=kind, field=where
        ) from None
    if isinstance(parsed, AnalyzeParameters) and parsed.template:
        _check_template(parsed.template)
    return parsed


def named_artifacts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The artifacts that a stage reads beside its input, by its checked parameters."""
    return tuple(known["artifact"] for known in values.get("known_speakers", ()))


def _check_template(name: str) -> None:
    if name not in TEMPLATES:
        raise InvalidInput(
            "TEMPLATE_UNKNOWN",
            f"no template {name!r}; there are: {', '.join(TEMPLATES)}",
            template=name,
            known=",".join(TEMPLATES),
        )
