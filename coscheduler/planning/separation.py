"""SAM-Audio in a plan: precisions, and how many layers of the transformer stay."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coscheduler.config import SeparationSettings
from coscheduler.core.model import EngineName, Line, Option
from coscheduler.engines.separation import config as config_file
from coscheduler.engines.separation import offer, sizes
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.offer import Shape
from coscheduler.engines.streaming.segments import SegmentEntry
from coscheduler.errors import EngineFault
from coscheduler.planning.offer import Machine, Offer, Offered, local, shape_wanted, title
from coscheduler.shapes import SeparationShape


@dataclass(frozen=True)
class TextEncoder:
    """A T5 by its config alone."""

    config: Mapping[str, Any]
    segment: SegmentEntry


def offered(settings: SeparationSettings, machine: Machine) -> Offer:
    """The engine's options. Raises InvalidInput SIZES_UNKNOWN, EngineFault MODEL_CORRUPT."""
    device = machine.device.device
    inner = offer.Machine(
        device, machine.device.threads, int(settings.pinned_max), machine.link_bytes_per_ms
    )
    named = settings.models if settings.model == "auto" else (settings.model,)
    found = [
        entry
        for index, name in enumerate(named)
        for entry in _of_model(settings, name, index, inner, machine)
    ]
    return Offer(
        EngineName.SEPARATION,
        ", ".join(map(title, named)),
        offer.CONTEXT_BYTES[device],
        tuple(found),
        {"prepared_file": found[0].host["prepared_file"]},
    )


def _of_model(
    settings: SeparationSettings, name: Path | str, index: int, inner: offer.Machine,
    machine: Machine,
) -> list[Offered]:  # fmt: skip
    model, text = _read(settings, name)
    encoder = TextEncoder(text, sizes.text_segment(text))
    found = []
    for precision in settings.precisions:
        shape = Shape(model, sizes.segments(model, precision), encoder)
        window_ms = settings.window_ms
        for option in offer.options(precision, shape, index, precision, window_ms, inner):
            found.append(_entry(option, shape, f"{index}/{precision}", inner, machine))
    return found


def _entry(
    option: Option, shape: Shape, family: str, inner: offer.Machine, machine: Machine
) -> Offered:
    chosen = json.loads(option.settings_json)
    layers = shape.layers
    streamed_bytes = (len(layers) - chosen["kept"]) * layers[0].bytes
    weights = sum(line.bytes for line in option.resident if line.line == Line.WEIGHTS)
    facts = {
        "precision": chosen["dtype"],
        "layers_resident": chosen["kept"],
        "layers": len(layers),
        "streamed_bytes_per_pass": streamed_bytes,
        "windows_per_pass": chosen["cohort"],
    }
    host = {"prepared_file": sum(segment.bytes for segment in shape.segments)}
    pinned_bytes = inner.pinned_bytes(streamed_bytes)
    if pinned_bytes:
        host["pinned"] = pinned_bytes
    timed = replace(option, load_ms=machine.copy_ms(weights))
    return Offered(timed, family, facts, host, streamed_bytes)


def _read(settings: SeparationSettings, name: Path | str) -> tuple[ModelConfig, Mapping[str, Any]]:
    """config.json of a model and of its text encoder, or what the config states of them."""
    folder, encoder = local(name, "config.json"), local(settings.text_encoder, "config.json")
    is_there = all((path / "config.json").is_file() for path in (folder, encoder))
    if settings.shape is not None and not is_there:
        return _stated(settings.shape), settings.shape.text_encoder.model_dump()
    with shape_wanted(EngineName.SEPARATION, name):
        return config_file.read(folder), _text_config(encoder)


def _stated(shape: SeparationShape) -> ModelConfig:
    net = shape.transformer.model_dump()
    text = {"dim": shape.text_encoder.d_model}
    parts = {"audio_codec": shape.audio_codec.model_dump(), "transformer": net}
    return ModelConfig.model_validate({**parts, "text_encoder": text})


def _text_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    try:
        read: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise EngineFault("MODEL_MISSING", f"there is no file {path}", file=path) from None
    except ValueError as error:
        raise EngineFault("MODEL_CORRUPT", f"{path} is not JSON: {error}", file=path) from None
    return read
