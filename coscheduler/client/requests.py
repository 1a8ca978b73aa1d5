"""From what a person asks for to a `JobRequest`, checked before anything is sent."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coscheduler import stages
from coscheduler.core.model import InputRef, Priority, StageKind
from coscheduler.errors import InvalidInput
from coscheduler.runtime.api import JobRequest, StageRequest

TITLE_CHARACTERS_MAX = 200  # the daemon refuses more, and a file name may have 255


@dataclass(frozen=True)
class Plan:
    """What to do with a recording, checked.

    `separate` is the sound to pull out; `analyze` a template, or `prompt` a question of one's own.
    `analysis` has further parameters of that stage by name, `stages.AnalyzeParameters`; with
    `template_text` among them it is the instruction. `separation` has further parameters of the
    separation by name, `stages.SeparateParameters`: spans, candidates, seed; `transcription` those
    of the transcription, `stages.TranscribeParameters`. `quality_min` and `deadline_ms` are those
    of `JobRequest`.
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

    def stages(self) -> tuple[StageRequest, ...]:
        """The stages in order. Raises InvalidInput NO_STAGES or what `stages.parse` raises."""
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
        return tuple(StageRequest(kind, parameters) for kind, parameters in wanted)

    def check(self, kind: str) -> None:
        """Whether it can be done with a file of this kind, "audio" or "transcript".

        Raises InvalidInput TRANSCRIPT_NEEDED or AUDIO_NEEDED, or what `stages` raises.
        """
        first = self.stages()[0].kind
        if kind == "audio" and first is StageKind.ANALYZE:
            text = "analysis reads a transcript: transcribe the recording, or pass a transcript"
            raise InvalidInput("TRANSCRIPT_NEEDED", text)
        if kind == "transcript" and first is not StageKind.ANALYZE:
            text = f"to {first} needs a recording, and this is text; leave transcription out"
            raise InvalidInput("AUDIO_NEEDED", text)

    def request(self, artifact: str, title: str) -> JobRequest:
        """The request for one uploaded file; each call makes up a new request_id."""
        return JobRequest(
            request_id=str(uuid.uuid4()),
            stages=self.stages(),
            source=InputRef(artifact=artifact),
            priority=int(self.priority),
            title=title[:TITLE_CHARACTERS_MAX],
            quality_min=self.quality_min,
            deadline_ms=self.deadline_ms,
        )
