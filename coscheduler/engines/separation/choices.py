"""The ways to have SAM-Audio in memory: for each configured model each precision, best first."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from coscheduler.config import SeparationSettings
from coscheduler.core.model import Option
from coscheduler.engines import hub
from coscheduler.engines.separation import model, offer
from coscheduler.engines.separation.model import ModelFolder
from coscheduler.engines.separation.offer import Machine, Shape
from coscheduler.engines.separation.text import TextEncoderFolder, open_text_encoder


@dataclass(frozen=True)
class Source:
    """A model folder with the text encoder that fits it; `name` is for people."""

    name: str
    folder: ModelFolder
    text_encoder: TextEncoderFolder


def open_sources(settings: SeparationSettings) -> tuple[Source, ...]:
    """The configured models, best first; of repositories the cached files, nothing is fetched.

    Raises EngineFault MODEL_MISSING or MODEL_CORRUPT.
    """
    named = settings.models if settings.model == "auto" else (settings.model,)
    encoder = _local(settings.text_encoder, hub.TEXT_ENCODER_FILES)
    return tuple(
        open_source(_local(name, hub.MODEL_FILES), encoder, _title(name)) for name in named
    )


def open_source(folder: Path, text_encoder: Path, name: str = "") -> Source:
    """A model and its text encoder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    opened = model.open_folder(folder)
    return Source(
        name or folder.name, opened, open_text_encoder(text_encoder, opened.config.text_encoder.dim)
    )


def _local(name: Path | str, files: tuple[str, ...]) -> Path:
    return name if isinstance(name, Path) else hub.fetch(hub.parse(name), files, offline=True)


def _title(name: Path | str) -> str:
    return name.name if isinstance(name, Path) else hub.parse(name).name.rpartition("/")[2]


def options(
    sources: tuple[Source, ...], precisions: tuple[str, ...], window_ms: int, machine: Machine
) -> tuple[Option, ...]:
    """For each model and precision the numbers of layers that may stay. A smaller model is a worse
    tier than any precision of a larger one.
    """
    return tuple(
        option
        for index, source in enumerate(sources)
        for precision in precisions
        for option in offer.options(
            f"{source.name}/{precision}" if len(sources) > 1 else precision,
            Shape(source.folder.config, source.folder.segments(precision), source.text_encoder),
            index,
            precision,
            window_ms,
            machine,
        )
    )


def with_files(
    offered: tuple[Option, ...], sources: tuple[Source, ...], prepared_dir: Path
) -> tuple[Option, ...]:
    """The same, each with the file that loading it reads. Raises OSError."""
    paths: dict[tuple[int, str], str] = {}
    found = []
    for option in offered:
        settings = json.loads(option.settings_json)
        which = settings["model"], settings["dtype"]
        if which not in paths:
            source = sources[settings["model"]]
            paths[which] = str(source.folder.weights_path(settings["dtype"], prepared_dir))
        found.append(replace(option, files=(paths[which],)))
    return tuple(found)
