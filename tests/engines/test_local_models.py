"""Models named by their repository: found in the local cache before an engine sees its settings."""

import socket
import sys
from pathlib import Path

import pytest

from coscheduler import config
from coscheduler.config import Settings
from coscheduler.core.model import EngineName
from coscheduler.engines import hub
from coscheduler.engines.host import local_models
from coscheduler.errors import EngineFault, InvalidInput

COMMIT = "b" * 40


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with the library online nothing may be asked for at run time."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(cache: Path, repository: str, *files: str, revision: str = "main") -> Path:
    """A snapshot as the library would have left it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    for name in files:
        path = folder / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder / "snapshots" / COMMIT


def settings_with(**sections: dict[str, object]) -> Settings:
    return config.parse(sections, Path("/nowhere"))


def test_every_model_of_transcription_is_found(cache: Path) -> None:
    whisper = put(cache, "someone/whisper", "config.json", revision="v1")
    aligner = put(cache, "aligner", "config.json")
    diarizer = put(cache, "someone/speakers", "config.yaml")
    settings = settings_with(
        transcription={
            "model": "hub:someone/whisper@v1",
            "aligners": {"en": "hub:aligner", "de": "de"},
            "diarizer": "hub:someone/speakers",
        }
    )
    found = local_models(EngineName.TRANSCRIPTION, settings).transcription
    assert found is not None and found.model == whisper and found.diarizer == diarizer
    assert found.aligners == {"en": aligner, "de": Path("/nowhere/de")}
    assert hub.title(found.model) == "whisper"


def test_a_gguf_is_one_file_of_a_repository(cache: Path) -> None:
    folder = put(cache, "someone/llm", "deep/model.gguf", "other.gguf")
    settings = settings_with(analysis={"model": "hub:someone/llm/deep/model.gguf"})
    found = local_models(EngineName.ANALYSIS, settings).analysis
    assert found is not None and found.model == folder / "deep" / "model.gguf"


def test_what_is_not_in_the_cache_is_not_fetched(cache: Path) -> None:
    settings = settings_with(analysis={"model": "hub:someone/llm/model.gguf@v2"})
    with pytest.raises(EngineFault, match="coscheduler models pull") as caught:
        local_models(EngineName.ANALYSIS, settings)
    assert caught.value.reason == "MODEL_MISSING"
    assert caught.value.numbers["repository"] == "someone/llm"


def test_without_the_library_of_the_hub_it_is_said_what_lacks(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    settings = settings_with(analysis={"model": "hub:someone/llm/model.gguf"})
    with pytest.raises(EngineFault, match="pip install huggingface_hub") as caught:
        local_models(EngineName.ANALYSIS, settings)
    assert caught.value.reason == "LIBRARY_MISSING"


def test_plain_paths_and_other_engines_are_left_alone(cache: Path) -> None:
    settings = settings_with(analysis={"model": "a.gguf"}, transcription={"model": "hub:a/b"})
    assert local_models(EngineName.ANALYSIS, settings) == settings
    assert local_models(EngineName.SEPARATION, settings) is settings


@pytest.mark.parametrize(
    "wrong", ["hub:", "hub:a/b/c", "hub:a b", "hub:a/b@", "hub:a/b", "hub:a/b@x.gguf"]
)
def test_a_wrong_name_is_told_with_the_field(wrong: str) -> None:
    with pytest.raises(InvalidInput, match=r"analysis\.model") as caught:
        settings_with(analysis={"model": wrong})
    assert caught.value.reason == "CONFIG_INVALID"
