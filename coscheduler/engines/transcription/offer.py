"""The options of transcription as they are offered: bytes by line, estimated times. No library."""

import json
from dataclasses import dataclass

from coscheduler.config import DeviceSettings
from coscheduler.core.model import Option
from coscheduler.engines.transcription import footprint, timing
from coscheduler.engines.transcription.footprint import Models, Place


@dataclass(frozen=True)
class Choice:
    """What an option stands for; `Option.settings_json` holds it."""

    compute_type: str
    batch_size: int


def option(
    models: Models, choice: Choice, beam_size: int, device: DeviceSettings, recording_ms_max: int
) -> Option:
    """The option of a choice; recordings are at most `recording_ms_max` long."""
    kind, batch_size = choice.compute_type, choice.batch_size
    window_ms = timing.window_ms(models.whisper, device, kind, beam_size, batch_size)
    place = Place(device.device, -(-recording_ms_max // 1000))
    return Option(
        name=f"{kind}, batch {batch_size}",
        resident=footprint.resident(models, kind),
        run=footprint.run_lines(models, place, kind, batch_size, beam_size),
        quality_tier=footprint.TIERS[kind],
        load_ms=timing.load_ms(models.whisper),
        run_ms_per_second=timing.run_ms_per_second(window_ms, device),
        slice_ms_max=timing.slice_ms_max(window_ms, batch_size, device),
        settings_json=json.dumps(vars(choice)),
    )
