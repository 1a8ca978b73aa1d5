"""Plans of the shipped configs from written sizes alone: what they promise, budget by budget.

No model file is there, no card, and no library of any engine is needed.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from coscheduler import config
from coscheduler.config import GIB, Settings
from coscheduler.core.model import EngineName, Line, StageKind
from coscheduler.errors import InvalidInput, Refused
from coscheduler.planning import stages
from coscheduler.planning.stages import Asked, EngineShare, Plan, StagePlan

CONFIGS = Path(__file__).parents[2] / "configs"
BUDGETS_GIB = (4, 6, 8, 12, 16, 22.75)
MIB = 1024**2


@pytest.fixture(scope="module", autouse=True)
def no_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever has the models in their home plans from the written sizes here all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@cache
def settings_of(name: str) -> Settings:
    return config.load(CONFIGS / f"{name}.toml")


@cache
def planned(name: str, budget_gib: float = 0) -> Plan:
    return stages.plan(settings_of(name), Asked(int(budget_gib * GIB)))


def stage(found: Plan, kind: StageKind) -> StagePlan:
    return next(entry for entry in found.stages if entry.stage == kind)


def share(found: Plan, kind: StageKind, engine: EngineName) -> EngineShare:
    return next(entry for entry in stage(found, kind).shares if entry.engine == engine)


def line_bytes(found: EngineShare, line: Line) -> int:
    return sum(entry.bytes for entry in found.lines if entry.line == line)


def test_24_gb_every_stage_stays_below_22_gib() -> None:
    found = planned("24gb")
    assert found.capacity_bytes == 22 * GIB and found.headroom_bytes == 768 * MIB
    assert [entry.stage for entry in found.stages] == list(StageKind)
    assert all(entry.total_bytes <= 22 * GIB for entry in found.stages)


def test_24_gb_whisper_and_the_whole_language_model_are_there_together() -> None:
    found = planned("24gb")
    whisper = share(found, StageKind.TRANSCRIBE, EngineName.TRANSCRIPTION)
    model = share(found, StageKind.TRANSCRIBE, EngineName.ANALYSIS)
    assert whisper.runs and whisper.found is not None and model.found is not None
    assert whisper.found.facts["compute_type"] == "float16"
    facts = model.found.facts
    assert facts["n_gpu_layers"] == facts["layers"] == 41  # 40 and the output matrix
    assert (facts["n_ctx"], facts["kv_type"]) == (8192, "f16")
    assert line_bytes(model, Line.KV_CACHE) == 1280 * MIB
    assert model.return_ms == 0


@pytest.mark.parametrize("kind", [StageKind.TRANSCRIBE, StageKind.ANALYZE])
def test_24_gb_it_is_said_what_sam_audio_keeps_meanwhile(kind: StageKind) -> None:
    kept = share(planned("24gb"), kind, EngineName.SEPARATION)
    assert kept.model == "sam-audio-large"
    if kept.found is None:
        assert kept.lines == () and kept.gives_way_bytes > 0 and kept.return_ms > 0
    else:
        assert kept.found.facts["layers"] == 22 and "layers_resident" in kept.found.facts
    assert dict(kept.host)["prepared_file"] > 5 * GIB  # the weights are in RAM, one copy away


def test_4_gb_the_same_three_models_each_in_4_gib() -> None:
    found = planned("4gb")
    large = [entry.model for entry in planned("24gb").stages[0].shares]
    assert [entry.model for entry in found.stages[0].shares] == large
    assert settings_of("4gb").analysis == settings_of("24gb").analysis.model_copy(  # type: ignore[union-attr]
        update={"kv_types": ("f16", "q8_0", "q4_0")}
    )
    for entry in found.stages:
        assert entry.total_bytes <= 4 * GIB - found.headroom_bytes
        assert [bool(other.lines) for other in entry.shares].count(True) == 1  # one process


def test_4_gb_each_is_degraded_in_its_own_way() -> None:
    found = planned("4gb")
    sam = share(found, StageKind.SEPARATE, EngineName.SEPARATION)
    whisper = share(found, StageKind.TRANSCRIBE, EngineName.TRANSCRIPTION)
    model = share(found, StageKind.ANALYZE, EngineName.ANALYSIS)
    assert sam.found is not None and whisper.found is not None and model.found is not None
    assert int(sam.found.facts["layers_resident"]) < int(sam.found.facts["layers"])
    assert int(sam.found.facts["streamed_bytes_per_pass"]) > 0
    assert line_bytes(sam, Line.SLOTS) > 0
    assert whisper.found.facts["compute_type"] == "int8_float16"
    assert int(whisper.found.facts["batch_size"]) <= 4
    assert whisper.better_bytes > found.capacity_bytes
    assert 0 < int(model.found.facts["n_gpu_layers"]) < 10
    assert 10 * GIB < dict(model.host)["ram"] < 14 * GIB  # the rest of 13.3 GiB


def test_4_gb_the_recommended_set_is_whole_and_faster() -> None:
    small, large = planned("4gb-small"), planned("4gb")
    for entry in small.stages:
        assert entry.total_bytes <= 4 * GIB - small.headroom_bytes
        assert entry.predicted_ms < stage(large, entry.stage).predicted_ms
    sam = share(small, StageKind.SEPARATE, EngineName.SEPARATION)
    assert sam.found is not None
    assert sam.found.facts["layers_resident"] == sam.found.facts["layers"] == 12


@pytest.mark.parametrize("name", ["24gb", "4gb", "4gb-small"])
def test_more_budget_is_never_slower_within_a_tier(name: str) -> None:
    for less, more in pairwise(BUDGETS_GIB):
        for before, after in zip(
            planned(name, less).stages, planned(name, more).stages, strict=True
        ):
            assert after.quality_tier <= before.quality_tier
            if after.quality_tier == before.quality_tier:
                assert after.predicted_ms <= before.predicted_ms


@pytest.mark.parametrize("name", ["24gb", "4gb", "4gb-small"])
@pytest.mark.parametrize("budget", BUDGETS_GIB)
def test_every_plan_adds_up_and_fits(name: str, budget: float) -> None:
    found = planned(name, budget)
    document = stages.as_json(found)
    assert set(document) == {"capacity_bytes", "headroom_bytes", "stages"}
    for entry in document["stages"]:
        assert set(entry) == {
            "stage", "total_bytes", "host_bytes", "predicted_ms", "quality_tier", "lines", "options"
        }  # fmt: skip
        lines = entry["lines"]
        assert sum(line["bytes"] for line in lines) == entry["total_bytes"]
        assert entry["total_bytes"] <= document["capacity_bytes"]
        assert set(entry["options"]) == {"separation", "transcription", "analysis"}
        held = [line for option in entry["options"].values() for line in option["host"]]
        assert sum(line["bytes"] for line in held) == entry["host_bytes"]
        assert len({(line["engine"], line["line"]) for line in lines}) == len(lines)


def test_what_would_be_faster_or_better_is_so_from_there_on() -> None:
    found = planned("4gb")
    for kind, engine in (
        (StageKind.ANALYZE, EngineName.ANALYSIS),
        (StageKind.TRANSCRIBE, EngineName.TRANSCRIPTION),
    ):
        before, told = stage(found, kind), share(found, kind, engine)
        for needed, is_better in ((told.faster_bytes, False), (told.better_bytes, True)):
            if not needed:
                continue
            enough = needed + found.headroom_bytes
            after, short = (
                stage(stages.plan(settings_of("4gb"), Asked(budget)), kind)
                for budget in (enough, enough - 1)
            )
            assert short.quality_tier == before.quality_tier
            if is_better:
                assert after.quality_tier < before.quality_tier
            else:
                assert after.predicted_ms < before.predicted_ms == short.predicted_ms


def test_a_slower_link_is_never_faster() -> None:
    fast = planned("4gb")
    slow = stages.plan(settings_of("4gb"), Asked(link_bytes_per_ms=3_000_000))
    for one, other in zip(fast.stages, slow.stages, strict=True):
        assert one.predicted_ms <= other.predicted_ms
    assert stage(fast, StageKind.ANALYZE).predicted_ms < stage(slow, StageKind.ANALYZE).predicted_ms


def test_what_never_fits_is_told_with_the_numbers() -> None:
    with pytest.raises(Refused) as caught:
        stages.plan(settings_of("24gb"), Asked(2 * GIB))
    assert caught.value.reason == "NEVER_FITS"
    needed = int(caught.value.numbers["required_bytes"])
    assert needed > int(caught.value.numbers["available_bytes"])
    enough = stages.plan(settings_of("24gb"), Asked(needed + 768 * MIB + 2 * GIB))
    assert enough.stages[0].total_bytes >= needed


def test_a_config_without_sizes_or_a_budget_says_so(tmp_path: Path) -> None:
    raw = {"device": {"device": "cuda"}, "analysis": {"model": "no.gguf"}}
    bare = config.parse(raw, tmp_path)
    with pytest.raises(InvalidInput, match="memory_cap") as caught:
        stages.plan(bare, Asked())
    assert caught.value.reason == "BUDGET_UNKNOWN"
    with pytest.raises(InvalidInput, match=r"\[analysis.shape\]") as caught:
        stages.plan(bare, Asked(8 * GIB))
    assert caught.value.reason == "SIZES_UNKNOWN"
    with pytest.raises(InvalidInput) as caught:
        stages.plan(bare, Asked(MIB))
    assert caught.value.reason == "BUDGET_TOO_SMALL"


def test_only_configured_engines_are_planned(tmp_path: Path) -> None:
    whole = settings_of("24gb")
    alone = stages.plan(whole.model_copy(update={"separation": None, "analysis": None}), Asked())
    assert [entry.stage for entry in alone.stages] == [StageKind.TRANSCRIBE]
