"""The options of transcription as they are offered: bytes by line, estimated times. No library."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from coscheduler.config import DeviceSettings
from coscheduler.core.model import Line, Option, total_bytes
from coscheduler.engines.transcription import footprint, timing
from coscheduler.engines.transcription.footprint import Models, Place
from coscheduler.engines.transcription.placement import HELD, Part, Placement, placements


@dataclass(frozen=True)
class Choice:
    """What an option stands for; `Option.settings_json` holds it."""

    compute_type: str
    batch_size: int
    placement: Placement = HELD

    @property
    def name(self) -> str:
        """For people."""
        label = self.placement.label
        return f"{self.compute_type}, batch {self.batch_size}" + (f", {label}" if label else "")

    @property
    def settings_json(self) -> str:
        """See `from_json`."""
        in_use = sorted(self.placement.in_use)
        return json.dumps([self.compute_type, self.batch_size, in_use])


def from_json(settings_json: str) -> Choice:
    """The choice behind an option."""
    compute_type, batch_size, in_use = json.loads(settings_json)
    return Choice(compute_type, batch_size, Placement(frozenset(map(Part, in_use))))


def choices(
    models: Models, compute_types: Iterable[str], batch_sizes: Iterable[int], device: str
) -> Iterator[Choice]:
    """All of them, in the order of preference."""
    sizes = tuple(batch_sizes)
    for compute_type in compute_types:
        for batch_size in sizes:
            for placement in placements(models.parts, device):
                yield Choice(compute_type, batch_size, placement)


def option(
    models: Models,
    choice: Choice,
    beam_size: int,
    device: DeviceSettings,
    recording_ms_max: int,
    detects_ahead: bool = False,
) -> Option:
    """The option of a choice; recordings are at most `recording_ms_max` long. Those that differ in
    what is held are a family.
    """
    kind, batch_size, placement = choice.compute_type, choice.batch_size, choice.placement
    window_ms = timing.window_ms(models.whisper, device, kind, beam_size, batch_size)
    place = Place(device.device, -(-recording_ms_max // 1000), detects_ahead)
    resident = footprint.resident(models, kind, placement)
    others = total_bytes(line for line in resident if line.line is not Line.WEIGHTS)
    moved_bytes = footprint.moved_bytes(models, kind, placement)
    return Option(
        name=choice.name,
        resident=resident,
        run=footprint.run_lines(models, place, kind, batch_size, beam_size, placement),
        quality_tier=footprint.TIERS[kind],
        load_ms=timing.load_ms(models.whisper, others),
        run_ms_per_second=timing.run_ms_per_second(window_ms, device),
        slice_ms_max=timing.slice_ms_max(window_ms, batch_size, device),
        run_ms_fixed=timing.moves_ms(moved_bytes, device),
        host_bytes=host_bytes(models, choice, device),
        settings_json=choice.settings_json,
        family=f"{kind}/{batch_size}",
    )


def host_bytes(models: Models, choice: Choice, device: DeviceSettings) -> int:
    """What is in RAM for what is not held on a card."""
    if device.device != "cuda":
        return 0
    in_use = choice.placement.in_use
    return sum(footprint.part_bytes(models, part, choice.compute_type) for part in in_use)
