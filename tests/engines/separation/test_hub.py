"""Repositories of the hub: the real client against a small server that speaks its protocol."""

import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coscheduler import config
from coscheduler.engines import hub
from coscheduler.engines.hub import MODEL_FILES, Repository
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.errors import EngineFault, InvalidInput
from coscheduler.separation import SamAudio
from tests.engines.separation.conftest import noise
from tests.hub_server import COMMIT, Hub, serving


@pytest.fixture
def server() -> Iterator[Hub]:
    with serving() as hub_server:
        yield hub_server


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub of these tests is on this machine; elsewhere the tests keep the library offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def filled(server: Hub, models: Path) -> Hub:
    server.repositories = {
        "someone/sam": {path.name: path.read_bytes() for path in (models / "sam").iterdir()},
        "t5-tiny": {path.name: path.read_bytes() for path in (models / "t5").iterdir()},
    }
    return server


def fetch(server: Hub, cache: Path, **more: Any) -> Path:
    given = {"cache_dir": cache, "endpoint": server.endpoint, **more}
    return hub.fetch(given.pop("source", Repository("someone/sam")), MODEL_FILES, **given)


def test_names_are_read() -> None:
    assert hub.parse("hub:a/b@v1/x") == Repository("a/b", "v1/x")
    assert hub.parse("t5-base") == Repository("t5-base")
    assert hub.parse("hub:a/b/q/c.gguf@v1") == Repository("a/b", "v1", "q/c.gguf")
    for wrong in ("", "a/b/c", "../x y", "hub:", "b/c.gguf/", "a/b/../c.gguf"):
        with pytest.raises(EngineFault):
            hub.parse(wrong)


def test_only_the_files_that_are_read_are_fetched_and_once(filled: Hub, tmp_path: Path) -> None:
    filled.repositories["someone/sam"]["extra.bin"] = b"not wanted"
    folder = fetch(filled, tmp_path)
    assert {path.name for path in folder.iterdir()} == set(MODEL_FILES)
    assert folder.name == COMMIT
    filled.asked.clear()
    assert fetch(filled, tmp_path, offline=True) == folder
    assert filled.asked == []
    fetch(filled, tmp_path)
    assert [command for command, _, _ in filled.asked if command == "GET"] == []


def test_all_files_come_from_the_commit_of_the_first(filled: Hub, tmp_path: Path) -> None:
    fetch(filled, tmp_path, source=Repository("someone/sam", "v2"))
    asked = [path for _, path, _ in filled.asked]
    assert all(f"/resolve/{'v2' if 'config' in path else COMMIT}/" in path for path in asked)


def test_a_gated_repository_needs_a_token(filled: Hub, tmp_path: Path) -> None:
    filled.gated.add("someone/sam")
    with pytest.raises(EngineFault) as caught:
        fetch(filled, tmp_path)
    assert caught.value.reason == "MODEL_GATED"
    assert "accept its terms" in caught.value.message
    assert fetch(filled, tmp_path, token="hf_secret").is_dir()


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (Repository("someone/else"), "someone/else"),
        (Repository("someone/sam", "v9"), "v9"),
    ],
)
def test_what_is_not_there_is_named(
    filled: Hub, tmp_path: Path, source: Repository, word: str
) -> None:
    with pytest.raises(EngineFault) as caught:
        fetch(filled, tmp_path, source=source)
    assert caught.value.reason == "MODEL_MISSING"
    assert word in caught.value.message


def test_a_missing_file_is_named(filled: Hub, tmp_path: Path) -> None:
    del filled.repositories["someone/sam"]["checkpoint.pt"]
    with pytest.raises(EngineFault) as caught:
        fetch(filled, tmp_path)
    assert caught.value.numbers["file"] == "checkpoint.pt"


def test_offline_without_a_cache_says_so(filled: Hub, tmp_path: Path) -> None:
    with pytest.raises(EngineFault, match="nothing is downloaded here") as caught:
        fetch(filled, tmp_path, offline=True)
    assert caught.value.reason == "MODEL_MISSING"
    assert filled.asked == []


def test_a_wrong_checksum_is_found_and_the_file_deleted(filled: Hub, tmp_path: Path) -> None:
    filled.wrong_etags = True
    with pytest.raises(EngineFault) as caught:
        fetch(filled, tmp_path)
    assert caught.value.reason == "MODEL_CORRUPT"
    assert caught.value.numbers["expected"] == hashlib.sha256(b"x").hexdigest()
    filled.wrong_etags = False
    assert fetch(filled, tmp_path).is_dir()


def test_an_unreachable_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits between its tries
    with pytest.raises(EngineFault) as caught:
        hub.fetch(Repository("a/b"), MODEL_FILES, cache_dir=tmp_path, endpoint="http://127.0.0.1:9")
    assert caught.value.reason == "HUB_UNREACHABLE"


def test_a_full_disk_is_told(filled: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(EngineFault) as caught:
        fetch(filled, tmp_path)
    assert caught.value.reason == "DISK_FULL"


def test_a_model_and_its_text_encoder_load_from_the_hub(filled: Hub, tmp_path: Path) -> None:
    given: Any = {"cache_dir": tmp_path, "prepared_dir": tmp_path / "prepared"}
    with SamAudio.load("someone/sam", endpoint=filled.endpoint, **given) as sam:
        first = sam.separate(noise(0.1), "a dog")
    with SamAudio.load("someone/sam", offline=True, **given) as sam:
        assert np.array_equal(sam.separate(noise(0.1), "a dog").target, first.target)


# ---- in the config -----------------------------------------------------------------------------


def separation(folder: Path, **section: Any) -> config.Settings:
    given = {"text_encoder": str(folder / "t5"), **section}
    return config.parse({"separation": given}, folder)


def test_the_engine_uses_the_cache_and_nothing_else(
    filled: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    engine = SeparationEngine(separation(models, model="hub:someone/sam"))
    with pytest.raises(EngineFault, match="not in the local cache"):
        engine.describe()
    fetch(filled, tmp_path)
    filled.asked.clear()
    assert engine.describe().model == "sam"
    assert filled.asked == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "auto"},
        {"model": "sam", "models": ["sam"]},
    ],
)
def test_auto_goes_with_models(models: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="auto") as caught:
        separation(models, **wrong)
    assert caught.value.reason == "CONFIG_INVALID"


def test_auto_offers_every_model_in_every_precision_best_first(
    models: Path, tmp_path: Path
) -> None:
    for name in ("large", "small"):
        (tmp_path / name).symlink_to(models / "sam")
    settings = separation(
        models, model="auto", models=[str(tmp_path / "large"), str(tmp_path / "small")],
        precisions=["float32", "int8"], prepared_dir=str(models / "prepared"),
    )  # fmt: skip
    engine = SeparationEngine(settings)
    described = engine.describe()
    assert described.model == "large, small"
    whole = [option for option in described.options if ":" not in option.name]  # nothing streamed
    assert [(option.name, option.quality_tier) for option in whole] == [
        ("large/float32", 0), ("large/int8", 2), ("small/float32", 3), ("small/int8", 5),
    ]  # fmt: skip
    engine.load(whole[3], lambda done, total: None)
    assert "Option small/int8" in engine._reason
    assert "large/float32 takes" in engine._reason
