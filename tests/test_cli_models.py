"""`coscheduler models check` on real files, `coscheduler templates`, templates of one's own."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from coscheduler import cli, stages
from coscheduler.cli import app, templates
from coscheduler.errors import InvalidInput

from .engines.analysis import architectures

MIB = 1024 * 1024


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["coscheduler", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a 24B model, 40 layers with 8 KV heads of 128, on hardly any weights."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    architectures.write_wide(path)
    return path


def test_the_seed_recipe(run: Run, large_model: Path) -> None:
    said = run("models", "check", large_model, "--kv-budget", "1.25 GiB", "--json")
    assert said.code == 0
    found = said.json
    assert (found["n_ctx"], found["kv_type"]) == (8192, "f16")
    assert found["kv_bytes"] == {"f16": 1280 * MIB, "q8_0": 680 * MIB, "q4_0": 360 * MIB}
    assert len(found["layers"]) == 40
    total = sum(found["layers"]) + found["embedding_bytes"] + found["output_bytes"]
    assert found["weights_bytes"] == total
    assert found["compute_bytes"] > MIB
    assert [work["fits"] for work in found["work"]] == [True, False, False]
    assert found["work"][1]["pieces"] > 1
    assert found["n_ctx_fitting"]["q4_0"] > found["n_ctx_fitting"]["q8_0"] > 8192


def test_a_context_of_ones_own_choice(run: Run, large_model: Path) -> None:
    found = run("models", "check", large_model, "--n-ctx", 4096, "--json").json
    assert found["n_ctx"] == 4096
    assert found["kv_bytes"]["q8_0"] == 340 * MIB
    assert found["kv_budget_bytes"] is None
    arguments = ("--n-ctx", 16_384, "--kv-budget", "1.25 GiB")
    assert run("models", "check", large_model, *arguments, "--json").json["kv_type"] == "q4_0"
    refused = run("models", "check", large_model, *arguments, "--kv-type", "f16")
    assert refused.code == 1
    assert "KV_CAP_TOO_SMALL" in refused.err
    assert str(2560 * MIB) in refused.err


def test_a_card_that_is_not_there_gets_estimates(run: Run, large_model: Path) -> None:
    arguments = ("models", "check", large_model, "--kv-budget", "1.25 GiB", "--memory")
    found = run(*arguments, "24 GiB", "--json").json
    assert found["compute_is_estimate"] is True
    assert found["layers_fitting"] == 40
    half = run(*arguments, "1.2 GiB", "--json").json["layers_fitting"]
    assert 0 < half < 40


def test_for_people(run: Run, large_model: Path) -> None:
    said = run("models", "check", large_model, "--memory", "24 GiB")
    for text in ("8192", "1.25 GiB", "680 MiB", "40 of 40", "estimate", "10 emails", "pieces"):
        assert text in said.out


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "MODEL_MISSING"), (b"GGUF", "MODEL_CORRUPT")]
)
def test_bad_files(run: Run, tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    said = run("models", "check", path, "--json")
    assert said.code == 1
    assert reason in said.err


def test_a_size_that_is_none(run: Run, large_model: Path) -> None:
    said = run("models", "check", large_model, "--kv-budget", "much")
    assert said.code == 2
    assert "SIZE_INVALID" in said.err


def test_the_templates(run: Run) -> None:
    found = {entry["name"]: entry for entry in run("templates", "--json").json["templates"]}
    assert set(found) == set(stages.TEMPLATES)
    assert found["translate"]["variables"] == {"to": "English"}
    assert all(entry["version"] >= 1 and entry["description"] for entry in found.values())
    said = run("templates")
    assert said.code == 0
    assert all(name in said.out for name in stages.TEMPLATES)


def test_a_template_of_ones_own_is_sent_as_text(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("version = 1", encoding="utf-8")
    assert templates.asked("summary", []) == ("summary", {})
    assert templates.asked(str(path), ["to=a=b"]) == (
        None,
        {"template_text": "version = 1", "variables": {"to": "a=b"}},
    )
    with pytest.raises(InvalidInput) as caught:
        templates.asked(str(tmp_path / "none.toml"), [])
    assert caught.value.reason == "TEMPLATE_UNREADABLE"
    with pytest.raises(InvalidInput, match="NAME=TEXT"):
        templates.asked("summary", ["to"])


def test_names_on_the_command_line_are_those_of_the_stages() -> None:
    assert [entry.value for entry in app.OverflowPolicy] == list(get_args(stages.Overflow))
    assert [entry.value for entry in app.PieceModeName] == list(get_args(stages.PieceMode))
