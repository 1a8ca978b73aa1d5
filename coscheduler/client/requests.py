"""From what a person asks for to a `JobRequest`, checked before anything is sent."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from coscheduler import stages
from coscheduler.core.model import InputRef, Priority, StageKind
from coscheduler.errors import InvalidInput
from coscheduler.runtime.api import JobRequest, StageRequest

Transcribed = Literal["target", "residual", "original"]
_UNSENT = f"artifacts/{32 * '0'}"  # stands for a clip that was not uploaded yet
TITLE_CHARACTERS_MAX = 200  # the daemon refuses more, and a file name may have 255


@dataclass(frozen=True)
class Plan:
    """What to do with a recording, checked.

    `separate` is the sound to pull out; `analyze` a template, or `prompt` a question of one's own.
    `analysis` has further parameters of that stage by name, `stages.AnalyzeParameters`; with
    `template_text` among them it is the instruction. `separation` has further parameters of the
    separation by name, `stages.SeparateParameters`: spans, candidates, seed; `transcription` those
    of the transcription, `stages.TranscribeParameters`. `quality_min` and `deadline_ms` are those
    of `JobRequest`. `transcribe_from` says what is transcribed of a recording that was separated.
    `clips` are names and files of people's voices, to be uploaded and looked for.
    """

    separate: str | None = None
    transcribe: bool = True
    analyze: str | None = None
    prompt: str | None = None
    language: str = ""
    priority: Priority = Priority.NORMAL
    analysis: Mapping[str, Any] = field(default_factory=dict)
    separation: Mapping[str, Any] = field(default_factory=dict)
    transcription: Mapping[str, Any] = field(default_factory=dict)
    quality_min: int | None = None
    deadline_ms: int | None = None
    transcribe_from: Transcribed = "target"
    clips: tuple[tuple[str, Path], ...] = ()

    def with_clips(self, artifacts: Sequence[str]) -> "Plan":
        """The plan after the clips were uploaded; `artifacts` are theirs, in order."""
        if not self.clips:
            return self
        known = [
            {"name": name, "artifact": artifact}
            for (name, _), artifact in zip(self.clips, artifacts, strict=True)
        ]
        return replace(
            self, clips=(), transcription={**self.transcription, "known_speakers": known}
        )

    def stages(self) -> tuple[StageRequest, ...]:
        """The stages in order, as far as they can be said before the upload.

        Raises InvalidInput NO_STAGES, NOTHING_SEPARATED or what `stages.parse` raises.
        """
        if self.transcribe_from != "target" and self.separate is None:
            text = f"there is no {self.transcribe_from} without a separation; say what to separate"
            raise InvalidInput("NOTHING_SEPARATED", text, transcribe_from=self.transcribe_from)
        wanted: list[tuple[StageKind, dict[str, Any]]] = []
        if self.separate is not None:
            wanted.append((StageKind.SEPARATE, {"prompt": self.separate, **self.separation}))
        if self.transcribe:
            wanted.append((StageKind.TRANSCRIBE, {"language": self.language, **self.transcription}))
        own = "template_text" in self.analysis
        if own or self.analyze is not None or self.prompt is not None:
            instruction = {"template": self.analyze or "", "prompt": self.prompt or ""}
            wanted.append((StageKind.ANALYZE, instruction | dict(self.analysis)))
        if not wanted:
            raise InvalidInput(
                "NO_STAGES", "nothing to do: ask for separation, transcription or analysis"
            )
        for kind, parameters in wanted:
            stages.parse(kind, parameters)
        return tuple(
            StageRequest(kind, parameters, self._input_of(kind)) for kind, parameters in wanted
        )

    def _input_of(self, kind: StageKind, source: InputRef | None = None) -> InputRef | None:
        """What a stage reads instead of the output of the one before it."""
        if kind is not StageKind.TRANSCRIBE or self.transcribe_from == "target":
            return None
        return source if self.transcribe_from == "original" else InputRef(role="residual")

    def check(self, kind: str) -> None:
        """Whether it can be done with a file of this kind, "audio" or "transcript".

        Raises InvalidInput TRANSCRIPT_NEEDED or AUDIO_NEEDED, or what `stages` raises.
        """
        first = self.with_clips([_UNSENT] * len(self.clips)).stages()[0].kind
        if kind == "audio" and first is StageKind.ANALYZE:
            text = "analysis reads a transcript: transcribe the recording, or pass a transcript"
            raise InvalidInput("TRANSCRIPT_NEEDED", text)
        if kind == "transcript" and first is not StageKind.ANALYZE:
            text = f"to {first} needs a recording, and this is text; leave transcription out"
            raise InvalidInput("AUDIO_NEEDED", text)

    def request(self, artifact: str, title: str) -> JobRequest:
        """The request for one uploaded file; each call makes up a new request_id."""
        source = InputRef(artifact=artifact)
        return JobRequest(
            request_id=str(uuid.uuid4()),
            stages=tuple(
                replace(stage, input=self._input_of(stage.kind, source)) for stage in self.stages()
            ),
            source=source,
            priority=int(self.priority),
            title=title[:TITLE_CHARACTERS_MAX],
            quality_min=self.quality_min,
            deadline_ms=self.deadline_ms,
        )
