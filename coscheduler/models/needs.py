"""What a config needs: one entry for each model, with the files that must be there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import EngineName
from coscheduler.engines import hub

Groups = tuple[tuple[str, ...], ...]

SAM_AUDIO: Groups = (("config.json",), ("checkpoint.pt",))
TEXT_ENCODER: Groups = (("config.json",), ("tokenizer.json",), ("model.safetensors",))
WHISPER: Groups = (
    ("config.json",), ("model.bin",), ("tokenizer.json",), ("vocabulary.json", "vocabulary.txt"),
)  # fmt: skip
ALIGNER: Groups = (
    ("config.json",), ("preprocessor_config.json",), ("vocab.json",),
    ("model.safetensors", "pytorch_model.bin"),
)  # fmt: skip
DIARIZER: Groups = (("config.yaml",),)
CARD = ("README.md", "LICENSE", "LICENSE.*")  # they say under which terms a model may be used
PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")  # a GGUF in several files


@dataclass(frozen=True)
class Need:
    """A model: `name` as in the config. Of each group one file must be there; files like one of
    `extras` belong to it where a repository has them.
    """

    engine: EngineName
    role: str
    name: str
    groups: Groups
    extras: tuple[str, ...] = ()

    @property
    def repository(self) -> hub.Repository | None:
        """Where it comes from; None for a plain path, which its owner puts in place."""
        return hub.parse(self.name) if hub.is_name(self.name) else None

    def wanted(self, files: Iterator[str]) -> tuple[str, ...]:
        """What to fetch of a repository's files: of each group the first that is there, the extras,
        and what says the terms.
        """
        there = tuple(files)
        chosen = [next((name for name in group if name in there), None) for group in self.groups]
        like = (*self.extras, *CARD)
        more = [name for name in there if any(fnmatch(name, pattern) for pattern in like)]
        return tuple(dict.fromkeys([*filter(None, chosen), *more]))

    def missing(self, files: Iterator[str]) -> tuple[str, ...]:
        """The groups of which nothing is among the files, each as "a or b"."""
        there = set(files)
        return tuple(" or ".join(group) for group in self.groups if there.isdisjoint(group))


def of(settings: Settings) -> tuple[Need, ...]:
    """Everything that the config's engines read, in the order of the engines."""
    if settings.engines == "fake":
        return ()
    found: list[Need] = []
    if settings.separation is not None:
        section = settings.separation
        names = section.models if section.model == "auto" else (section.model,)
        found += [Need(EngineName.SEPARATION, "model", str(name), SAM_AUDIO) for name in names]
        encoder = str(section.text_encoder)
        found.append(Need(EngineName.SEPARATION, "text encoder", encoder, TEXT_ENCODER))
    if settings.transcription is not None:
        found += _transcription(settings.transcription)
    if settings.analysis is not None:
        model = settings.analysis.model
        found.append(Need(EngineName.ANALYSIS, "model", str(model), _gguf(model)))
    return tuple(found)


def _transcription(section: TranscriptionSettings) -> Iterator[Need]:
    engine = EngineName.TRANSCRIPTION
    yield Need(engine, "model", str(section.model), WHISPER, ("preprocessor_config.json",))
    for language, path in section.aligners.items():
        extras = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        yield Need(engine, f"aligner {language}", str(path), ALIGNER, extras)
    if section.diarizer is not None:
        yield Need(engine, "diarizer", str(section.diarizer), DIARIZER, ("*/*", "*.yaml"))


def _gguf(model: Path) -> Groups:
    """The file, or all parts of one that is split."""
    source = hub.parse(str(model)) if hub.is_name(model) else None
    name = source.file if source else model.name
    split = PART.fullmatch(name)
    if split is None:
        return ((name,),)
    numbers = range(1, int(split[2]) + 1)
    return tuple((f"{split[1]}-{number:05d}-of-{split[2]}.gguf",) for number in numbers)
