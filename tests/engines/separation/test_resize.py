"""The loaded engine gives up layers and takes them back, also while it separates."""

from collections.abc import Callable
from itertools import cycle

import pytest

from coscheduler.core.model import total_bytes
from coscheduler.engines.base import Task
from coscheduler.engines.separation import pacing
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.errors import EngineFault
from tests.engines.separation.conftest import finish, noise


def signals(task: Task) -> tuple[bytes, ...]:
    return tuple((task.output_dir / f"{name}.wav").read_bytes() for name in ("target", "residual"))


def test_the_result_is_the_same_bit_for_bit_while_layers_come_and_go(
    engine: SeparationEngine, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_is, changed = (task(noise(0.5)) for _ in range(2))
    finish(engine, as_it_is)
    monkeypatch.setattr(pacing, "SLICE_MS", 0)  # a slice for each step, within a pass too
    offered = engine.describe().options
    family = [option for option in offered if option.family == offered[0].family]
    assert len(family) == 3
    sizes = cycle(family)
    held = set()
    for _ in engine.slices(changed):
        engine.resize(next(sizes))
        held.add(total_bytes(engine.held()))
    engine.resize(family[0])
    assert signals(changed) == signals(as_it_is)
    assert {total_bytes(option.resident) for option in family} <= held
    assert engine.held() == family[0].resident


def test_without_room_to_grow_it_stays_as_it_was(
    make_engine: Callable[..., SeparationEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(window_ms=2000)
    whole, *_, least = (o for o in engine.describe().options if o.family.endswith("float32"))
    engine.resize(least)

    def full(*_: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr("coscheduler.engines.streaming.streamer.load_block", full)
    with pytest.raises(EngineFault) as fault:
        engine.resize(whole)
    assert fault.value.reason == "OUT_OF_MEMORY"
    assert engine.held() == least.resident
    engine.unload()
    with pytest.raises(EngineFault, match="no option"):
        engine.resize(whole)
