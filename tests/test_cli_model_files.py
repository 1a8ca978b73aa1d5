"""`coscheduler models list`, `pull` and `check --config`."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coscheduler import cli
from tests.hub_server import Hub, serving

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["coscheduler", "models", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    return call


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and a cache of this test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repositories["a/llm"] = {
            "m.gguf": b"x" * 2000,
            "README.md": b"---\nlicense: mit\n---\n",
        }
        hub.card = {"license": "mit"}
        yield hub


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('[transcription]\nmodel = "whisper"\n[analysis]\nmodel = "hub:a/llm/m.gguf"\n')
    return path


def test_nothing_is_there_and_nobody_is_asked(run: Run, server: Hub, config: Path) -> None:
    said = run("list", "--config", config, "--json")
    assert said.code == 1 and server.asked == []
    whisper, model = said.json["models"]
    assert (whisper["engine"], whisper["role"], whisper["folder"]) == (
        "transcription",
        "model",
        None,
    )
    assert model["missing"] == ["m.gguf"] and model["gating"] is None and not model["ok"]


def test_the_hub_tells_size_licence_and_gating(run: Run, server: Hub, config: Path) -> None:
    server.gated.add("a/llm")
    model = run("list", "--config", config, "--online", "--json").json["models"][1]
    assert model["download_bytes"] == 2021 and model["licence"] == "mit"
    assert model["gating"] == "manual"
    said = run("list", "--config", config, "--online")
    assert "gated (manual)" in said.out and "HF_TOKEN" in said.out and "to fetch" in said.out


def test_pull_fetches_what_has_a_name_and_says_what_has_none(
    run: Run, server: Hub, config: Path
) -> None:
    said = run("pull", "--config", config, "--json")
    assert said.code == 1
    whisper, model = said.json["models"]
    assert model["ok"] and model["size_bytes"] == 2021 and model["licence"] == "mit"
    assert not whisper["ok"] and "put the files there" in whisper["error"]
    assert "hub:a/llm/m.gguf: 1 of 2: m.gguf, 1.95 KiB" in said.err
    assert run("pull", "--config", config, "--engine", "analysis", "--json").code == 0


def test_check_finds_what_was_damaged_since(
    run: Run, server: Hub, config: Path, tmp_path: Path
) -> None:
    config.write_text('[analysis]\nmodel = "hub:a/llm/m.gguf"\n')
    run("pull", "--config", config)
    (blob,) = (
        path for path in (tmp_path / "cache").rglob("*/blobs/*") if path.stat().st_size == 2000
    )
    blob.chmod(0o644)
    blob.write_bytes(b"y" * 2000)
    said = run("check", "--config", config, "--json")
    assert said.code == 1
    (model,) = said.json["models"]
    assert "sha256" in model["error"] and not model["ok"]
    assert said.json["engines"]["analysis"]["error"]["reason"] in ("MODEL_MISSING", "MODEL_CORRUPT")


def test_check_opens_every_model_of_a_config(run: Run, tiny_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[analysis]\nmodel = "{tiny_models / "llm-tiny.gguf"}"\n')
    said = run("check", "--config", path)
    assert said.code == 0 and "analysis: llm-tiny.gguf can be opened" in said.out
    (tmp_path / "cut.gguf").write_bytes((tiny_models / "llm-tiny.gguf").read_bytes()[:9000])
    path.write_text('[analysis]\nmodel = "cut.gguf"\n')
    said = run("check", "--config", path)
    assert said.code == 1 and "MODEL_CORRUPT" in said.out


def test_check_wants_a_file_or_a_config(run: Run, config: Path) -> None:
    for arguments in ([], ["x.gguf", "--config", str(config)]):
        said = run("check", *arguments)
        assert said.code == 2 and "either a GGUF FILE or" in said.err
