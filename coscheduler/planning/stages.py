"""A plan for each stage: which engine has what of the device and of the host while it runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coscheduler.config import Settings
from coscheduler.core.model import ENGINE_OF, EngineName, Line, LineBytes, StageKind, total_bytes
from coscheduler.core.together import (
    Budget,
    Choice,
    Share,
    Together,
    own_choice,
    plan_together,
    run_ms,
)
from coscheduler.errors import InvalidInput, Refused
from coscheduler.planning import analysis, separation, transcription
from coscheduler.planning.offer import Machine, Offer, Offered

LINK_BYTES_PER_MS = 24_000_000  # PCIe 4.0 with 16 lanes, as measured: 24 GB/s
DURATION_MS = 600_000


@dataclass(frozen=True)
class Asked:
    """What to plan for. `budget_bytes` 0: the config's `memory_cap`."""

    budget_bytes: int = 0
    link_bytes_per_ms: int = LINK_BYTES_PER_MS
    duration_ms: int = DURATION_MS


@dataclass(frozen=True)
class EngineShare:
    """An engine during a stage: its ledger lines on the device and the host, and what it gave up.

    `found` None: it is out. `gives_way_bytes` are those that it would have in its own stage. From
    `better_bytes` of capacity on it would run at a better quality tier, from `faster_bytes` on
    faster at its own; 0 where it would never.
    """

    engine: EngineName
    model: str
    runs: bool
    found: Offered | None
    lines: tuple[LineBytes, ...]
    host: tuple[tuple[str, int], ...]
    gives_way_bytes: int
    return_ms: int
    better_bytes: int
    faster_bytes: int

    @property
    def host_bytes(self) -> int:
        """All of its host lines."""
        return sum(size for _, size in self.host)


@dataclass(frozen=True)
class StagePlan:
    """One stage and everybody's share; `predicted_ms` is for a recording of the asked length."""

    stage: StageKind
    predicted_ms: int
    quality_tier: int
    shares: tuple[EngineShare, ...]

    @property
    def total_bytes(self) -> int:
        """On the device."""
        return sum(total_bytes(share.lines) for share in self.shares)

    @property
    def host_bytes(self) -> int:
        """On the host: RAM, page-locked memory, and prepared files in the page cache."""
        return sum(share.host_bytes for share in self.shares)


@dataclass(frozen=True)
class Plan:
    """Every stage whose engine is configured."""

    capacity_bytes: int
    headroom_bytes: int
    asked: Asked
    stages: tuple[StagePlan, ...]


def plan(settings: Settings, asked: Asked) -> Plan:
    """The joint plan of each stage.

    Raises InvalidInput BUDGET_UNKNOWN, BUDGET_TOO_SMALL or SIZES_UNKNOWN, Refused NEVER_FITS with
    the bytes that the stage needs, EngineFault MODEL_CORRUPT for a damaged file.
    """
    budget_bytes = asked.budget_bytes or int(settings.device.memory_cap)
    headroom_bytes = int(settings.device.headroom)
    capacity_bytes = _capacity(budget_bytes, headroom_bytes)
    offers = offers_of(settings, asked.link_bytes_per_ms)
    processes_max = settings.device.gpu_processes_max
    budget = Budget(capacity_bytes, processes_max, asked.duration_ms)
    stages = tuple(
        _stage(kind, offers, budget)
        for kind in StageKind
        if any(offer.engine == ENGINE_OF[kind] for offer in offers)
    )
    return Plan(capacity_bytes, headroom_bytes, asked, stages)


def offers_of(settings: Settings, link_bytes_per_ms: int) -> tuple[Offer, ...]:
    """What each configured engine has to offer. Raises InvalidInput SIZES_UNKNOWN, EngineFault."""
    machine = Machine(settings.device, link_bytes_per_ms, settings.store.recording_ms_max)
    found = []
    if settings.separation is not None:
        found.append(separation.offered(settings.separation, machine))
    if settings.transcription is not None:
        found.append(transcription.offered(settings, settings.transcription, machine))
    if settings.analysis is not None:
        found.append(analysis.offered(settings.analysis, machine))
    return tuple(found)


def _capacity(budget_bytes: int, headroom_bytes: int) -> int:
    if not budget_bytes:
        raise InvalidInput(
            "BUDGET_UNKNOWN",
            'the config has no memory_cap and no --budget was given; say --budget "8 GiB"',
        )
    if budget_bytes <= headroom_bytes:
        raise InvalidInput(
            "BUDGET_TOO_SMALL",
            f"a budget of {budget_bytes} bytes leaves nothing beside the headroom of "
            f"{headroom_bytes}; give more, or lower [device] headroom",
            budget_bytes=budget_bytes,
            headroom_bytes=headroom_bytes,
        )
    return budget_bytes - headroom_bytes


def _stage(kind: StageKind, offers: tuple[Offer, ...], budget: Budget) -> StagePlan:
    members = [offer.member for offer in offers]
    found = plan_together(members, ENGINE_OF[kind], budget)
    if found is None:
        raise _never_fits(kind, offers, budget)
    shares = tuple(
        _share(offer, share, found, ENGINE_OF[kind], budget)
        for offer, share in zip(offers, found.shares, strict=True)
    )
    return StagePlan(kind, found.run_ms, found.quality_tier, shares)


def _never_fits(kind: StageKind, offers: tuple[Offer, ...], budget: Budget) -> Refused:
    offer = next(offer for offer in offers if offer.engine == ENGINE_OF[kind])
    least = min(offer.offered, key=lambda entry: entry.option.peak_bytes(budget.duration_ms))
    required = offer.context_bytes + least.option.peak_bytes(budget.duration_ms)
    return Refused(
        "NEVER_FITS",
        f"stage {kind} needs at least {required} bytes ({offer.model}, {least.option.name}) and "
        f"{budget.capacity_bytes} are left beside the headroom; plan for a larger budget, or "
        "configure a smaller model or a coarser type",
        stage=kind,
        required_bytes=required,
        available_bytes=budget.capacity_bytes,
    )


def _share(
    offer: Offer, share: Share, found: Together, runs: EngineName, budget: Budget
) -> EngineShare:
    wanted = own_choice(offer.member, budget)
    entry = offer.behind(share.choice) if share.choice else None
    kept_bytes = total_bytes(entry.option.resident) if entry else 0
    wanted_bytes = total_bytes(wanted.option.resident) if wanted else 0
    host = entry.host if entry else offer.host_out
    return EngineShare(
        engine=offer.engine,
        model=offer.model,
        runs=offer.engine == runs,
        found=entry,
        lines=tuple(_lines(offer, share.choice, offer.engine == runs, budget)),
        host=tuple(host.items()),
        gives_way_bytes=max(0, wanted_bytes - kept_bytes),
        return_ms=share.return_ms,
        better_bytes=_better_bytes(offer, wanted, budget),
        faster_bytes=_faster_bytes(offer, wanted, budget),
    )


def _lines(offer: Offer, choice: Choice | None, runs: bool, budget: Budget) -> Iterator[LineBytes]:
    """One entry for each line, in the order of the ledger."""
    if choice is None:
        return
    held = [LineBytes(Line.CONTEXT, offer.context_bytes), *choice.option.resident]
    if runs:
        held += choice.option.run_lines(budget.duration_ms)
    for line in Line:
        size = total_bytes(entry for entry in held if entry.line == line)
        if size:
            yield LineBytes(line, size)


def _better_bytes(offer: Offer, wanted: Choice | None, budget: Budget) -> int:
    """The least capacity at which the engine would run at a better tier than it will."""
    needs = [
        offer.context_bytes + entry.option.peak_bytes(budget.duration_ms)
        for entry in offer.offered
        if wanted is None or entry.option.quality_tier < wanted.option.quality_tier
    ]
    return min(needs, default=0)


def _faster_bytes(offer: Offer, wanted: Choice | None, budget: Budget) -> int:
    """The least capacity at which the engine would run faster at the tier that it has."""
    if wanted is None:
        return 0
    tier, duration_ms = wanted.option.quality_tier, budget.duration_ms
    options = [entry.option for entry in offer.offered if entry.option.quality_tier == tier]
    needs = [
        offer.context_bytes + option.peak_bytes(duration_ms)
        for option in options
        if run_ms(option, duration_ms) < run_ms(wanted.option, duration_ms)
    ]
    return min(needs, default=0)


def as_json(found: Plan) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "capacity_bytes": found.capacity_bytes,
        "headroom_bytes": found.headroom_bytes,
        "stages": [_stage_json(stage) for stage in found.stages],
    }


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    return {
        "stage": str(stage.stage),
        "total_bytes": stage.total_bytes,
        "host_bytes": stage.host_bytes,
        "predicted_ms": stage.predicted_ms,
        "quality_tier": stage.quality_tier,
        "lines": [
            {"engine": str(share.engine), "line": str(line.line), "bytes": line.bytes}
            for share in stage.shares
            for line in share.lines
        ],
        "options": {str(share.engine): _option_json(share) for share in stage.shares},
    }


def _option_json(share: EngineShare) -> dict[str, Any]:
    option = share.found.option if share.found else None
    return {
        "model": share.model,
        "runs": share.runs,
        "option": option.name if option else None,
        "quality_tier": option.quality_tier if option else None,
        **(share.found.facts if share.found else {}),
        "host": [{"line": line, "bytes": size} for line, size in share.host],
        "gives_way_bytes": share.gives_way_bytes,
        "return_ms": share.return_ms,
        "better_tier_needs_bytes": share.better_bytes or None,
        "faster_needs_bytes": share.faster_bytes or None,
    }
