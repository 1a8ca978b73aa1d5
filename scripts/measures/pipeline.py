"""Many recordings through all three stages, in the simulator with the sizes of real models.

Ours is the real scheduler in virtual time, every recording a job, against (a) one script that
loads, runs and unloads each model in turn for each recording, (b) the same stage by stage: each
model once for all recordings, and the lower bound: no schedule ends before the busiest resource has
done its work. All have the same options and predicted times; (a) and (b) take for each stage what
is fastest when the card is theirs alone. Times are those of the options at a stated link; what two
engines that compute at once take from each other is not in them, so look at one slot, too.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from coscheduler import config
from coscheduler.config import DeviceSettings, Settings
from coscheduler.core import events as ev
from coscheduler.core import planner
from coscheduler.core.model import (
    ENGINE_OF,
    EngineDescription,
    EngineName,
    Line,
    Option,
    StageKind,
)
from coscheduler.planning.offer import Offered
from coscheduler.planning.stages import offers_of
from coscheduler.runtime.opening import limits_of

ROOT = Path(__file__).resolve().parents[2]
RELEASE_MS = 150  # the middle of what the simulator takes to unload
Descriptions = dict[EngineName, EngineDescription]


@dataclass(frozen=True)
class Row:
    """Makespans, in milliseconds of virtual time."""

    config: str
    duration_ms: int
    compute_slots: int
    load_bytes_per_ms: int
    ours_ms: int
    one_by_one_ms: int
    stage_by_stage_ms: int
    bound_ms: int
    loads: int


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    chosen = parse(arguments)
    if chosen.worker:
        from measures._pipeline_demo import work

        print(json.dumps(work(chosen.worker, chosen.recordings, chosen.seconds[0])))
        return 0
    sys.path.insert(0, str(ROOT))
    rows = [
        row(path, slots, round(speed * 1e6), 1000 * seconds, chosen)
        for path in chosen.config
        for seconds in chosen.seconds
        for slots in chosen.slots
        for speed in chosen.load
    ]
    print(
        f"{chosen.recordings} recordings of {chosen.seconds} s, link {chosen.link} GB/s, minutes:"
    )
    print("\n".join(map(line, rows)))
    demo = None
    if chosen.demo_seconds:
        from measures._pipeline_demo import measure

        print(f"tiny models on this processor, {chosen.recordings} of {chosen.demo_seconds} s:")
        demo = measure(chosen.recordings, chosen.demo_seconds)
    if chosen.out:
        names = ("recordings", "link")
        document = {name: getattr(chosen, name) for name in names}
        document["rows"] = [asdict(entry) for entry in rows]
        document["demo"] = demo
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    configs = [ROOT / "configs" / name for name in ("24gb.toml", "4gb.toml", "4gb-small.toml")]
    parser = argparse.ArgumentParser(
        prog="scripts/measure pipeline",
        description=__doc__.split("\n")[0],
        epilog="example: scripts/measure pipeline --recordings 20 --seconds 10 60",
    )
    parser.add_argument("--config", type=Path, nargs="*", default=configs)
    parser.add_argument("--recordings", type=int, default=20)
    parser.add_argument(
        "--seconds", type=int, nargs="*", default=[10, 60, 600], help="of each recording"
    )
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 2], help="engines at once")
    parser.add_argument(
        "--load", type=float, nargs="*", default=[24.0, 2.0], help="GB/s from a file to the card"
    )
    parser.add_argument("--link", type=float, default=24.0, help="GB/s while layers are streamed")
    parser.add_argument(
        "--demo-seconds", type=int, default=0, help="also run tiny models here, on so much audio"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args(arguments)


def row(
    path: Path, slots: int, load_bytes_per_ms: int, duration_ms: int, chosen: argparse.Namespace
) -> Row:
    """One config with so many slots, and recordings of that length."""
    settings = config.load(path)
    device = settings.device.model_copy(update={"compute_slots": slots})
    settings = settings.model_copy(update={"device": device})
    described = descriptions(settings, round(chosen.link * 1e6), load_bytes_per_ms)
    capacity = int(device.memory_cap) - int(device.headroom)
    count = chosen.recordings
    alone = [best_alone(described[ENGINE_OF[kind]], duration_ms, capacity) for kind in StageKind]
    ours_ms, loads = simulated(settings, described, capacity, duration_ms, count)
    return Row(
        path.stem, duration_ms, slots, load_bytes_per_ms, ours_ms,
        one_by_one_ms(alone, duration_ms, count), stage_by_stage_ms(alone, duration_ms, count),
        bound_ms(described, alone, duration_ms, capacity, count, at_once(device)), loads,
    )  # fmt: skip


def at_once(device: DeviceSettings) -> int:
    """How many engines can compute at once: none without a context."""
    return min(device.compute_slots, device.gpu_processes_max)


def descriptions(settings: Settings, link: int, load_bytes_per_ms: int) -> Descriptions:
    """What the engines offer, from sizes alone, with loads at the stated speed."""
    found = {}
    for offer in offers_of(settings, link):
        options = tuple(
            replace(entry.option, load_ms=load_ms(entry, load_bytes_per_ms))
            for entry in offer.offered
        )
        found[offer.engine] = EngineDescription(
            offer.engine, offer.model, options, offer.context_bytes
        )
    return found


def load_ms(entry: Offered, bytes_per_ms: int) -> int:
    """Its weights at that speed; what is streamed must come from the file once, too."""
    weights = sum(line.bytes for line in entry.option.resident if line.line is Line.WEIGHTS)
    return (weights + int(entry.facts.get("streamed_bytes_per_pass", 0))) // bytes_per_ms + 1


def run_ms(option: Option, duration_ms: int) -> int:
    """As the simulator takes it."""
    return 1 + option.run_ms_per_second * duration_ms // 1000


def best_alone(described: EngineDescription, duration_ms: int, capacity: int) -> Option:
    """The planner's choice with the card to itself."""
    context, options = described.context_bytes, described.options
    tier = planner.best_tier(options, duration_ms, context, capacity)
    assert tier is not None, f"{described.engine} does not fit {capacity} bytes"
    request = planner.Request(options, duration_ms, context, needs_process=True)
    found = planner.plan(request, tier, planner.Room(capacity, (), 1))
    assert found is not None
    return found.option


def one_by_one_ms(alone: Sequence[Option], duration_ms: int, count: int) -> int:
    """Load, run and unload every model for every recording."""
    return count * sum(o.load_ms + run_ms(o, duration_ms) + RELEASE_MS for o in alone)


def stage_by_stage_ms(alone: Sequence[Option], duration_ms: int, count: int) -> int:
    """Load a model, run it over all recordings, unload it."""
    return sum(o.load_ms + count * run_ms(o, duration_ms) + RELEASE_MS for o in alone)


def bound_ms(
    described: Descriptions,
    alone: Sequence[Option],
    duration_ms: int,
    capacity: int,
    count: int,
    at_once: int,
) -> int:
    """The busiest of: each engine, all that compute at once, and the stages of one recording.

    Of every engine the fastest option counts that fits an empty card at the same quality; loads
    cost nothing, and all engines are there at once.
    """
    fastest = []
    for kind, own in zip(StageKind, alone, strict=True):
        engine = described[ENGINE_OF[kind]]
        fitting = [
            run_ms(option, duration_ms)
            for option in engine.options
            if option.quality_tier == own.quality_tier
            and planner.fits_alone(option, duration_ms, engine.context_bytes, capacity)
        ]
        fastest.append(min(fitting))
    work = count * sum(fastest)
    return max(count * max(fastest), -(-work // at_once), sum(fastest))


def simulated(
    settings: Settings, described: Descriptions, capacity: int, duration_ms: int, count: int
) -> tuple[int, int]:
    """When the last job ends, all submitted at once, and how often something was loaded."""
    from tests.core.build import job
    from tests.sim.simulator import Setup, World

    setup = Setup(capacity, limits_of(settings), described)
    world = World(setup, random.Random(0))  # noqa: S311 a simulation, not a secret
    for number in range(count):
        made = job(f"jobs/{number:03d}", *StageKind, arrival_ms=number)
        stages = tuple(replace(stage, duration_ms=duration_ms) for stage in made.stages)
        world.at(0, ev.Submitted(replace(made, stages=stages)))
    world.run()
    assert not world.refused, world.refused
    return max(made.finished_ms for made in world.stored.values()), world.tally.loads


def line(row: Row) -> str:
    """A row for people, in minutes."""
    ours, one, stages, bound = (
        ms / 60_000 for ms in (row.ours_ms, row.one_by_one_ms, row.stage_by_stage_ms, row.bound_ms)
    )
    load, seconds = row.load_bytes_per_ms / 1e6, row.duration_ms // 1000
    return (
        f"{row.config:10} {seconds:4} s, slots {row.compute_slots}, {load:4.1f} GB/s:"
        f" ours {ours:6.1f} ({row.loads:2} loads), one by one {one:6.1f} ({one / ours:.2f}x), "
        f"by stages {stages:6.1f} ({stages / ours:.2f}x), bound {bound:6.1f} ({ours / bound:.2f})"
    )
