"""What may import what, and what the base install may not need."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from coscheduler import config
from coscheduler.config import Settings

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "numpy", "transformers", "whisperx", "ctranslate2", "llama_cpp", "av"}


def imported_by(module: str) -> set[str]:
    """Names of all modules that are there after importing `module` in a fresh interpreter."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(answer.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "coscheduler.client",
        "coscheduler.cli",
        "coscheduler.rpc.server",
        "coscheduler.runtime.daemon",
    ],
)
def test_client_and_daemon_run_without_the_engines_libraries(module: str) -> None:
    assert not imported_by(module) & HEAVY


def test_client_knows_neither_daemon_nor_engines() -> None:
    modules = imported_by("coscheduler.client")
    assert not [name for name in modules if name.startswith("coscheduler.engines")]
    runtime = {name for name in modules if name.startswith("coscheduler.runtime")}
    assert runtime <= {"coscheduler.runtime", "coscheduler.runtime.api"}
    rpc = {name for name in modules if name.startswith("coscheduler.rpc.")}
    assert not rpc & {"coscheduler.rpc.server", "coscheduler.rpc.services"}


def test_core_is_pure() -> None:
    modules = imported_by("coscheduler.core.scheduler")
    assert not modules & {"grpc", "pydantic", "asyncio", "threading", "logging", "random", *HEAVY}


def test_import_contracts_are_kept() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([tool], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout[-3000:]


def test_base_install_has_no_engine_library() -> None:
    base = [line for line in requires("coscheduler") or [] if "extra ==" not in line]
    names = {line.split(";")[0].split("[")[0].rstrip("><=!~.0123456789, ") for line in base}
    assert "grpcio" in names
    assert not names & (HEAVY | {"llama-cpp-python", "huggingface-hub", "gguf"})


def test_every_extra_is_part_of_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["all"] == ["coscheduler[separation,transcription,analysis]"]
    assert set(extras) == {"separation", "transcription", "analysis", "all", "train", "dev"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_config_loads_with_all_engines(path: Path) -> None:
    settings = config.load(path)
    assert settings.separation and settings.transcription and settings.analysis
    assert Path(settings.separation.model).is_absolute()
    assert settings.analysis.model.suffix == ".gguf"
    assert settings.device.device == ("cuda" if "gb" in path.stem else "cpu")


def test_reference_config_shows_every_field() -> None:
    text = (ROOT / "configs" / "cpu.toml").read_text()
    for name, field in Settings.model_fields.items():
        fields = _fields_of(field.annotation)
        assert f"\n[{name}]" in text if fields else f"\n{name} =" in text, name
        for entry in fields:
            assert f"\n{entry} =" in text or f"\n# {entry} =" in text, f"{name}.{entry}"


def _fields_of(annotation: Any) -> list[str]:
    """The fields of a section, also of one that may be None; [] for a plain value."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return list(candidate.model_fields)
    return []


def test_tiny_config_keeps_to_the_repository() -> None:
    settings = config.load(ROOT / "configs" / "tiny.toml")
    assert settings.separation is not None
    for path in (settings.data_dir, Path(settings.separation.model)):
        assert path.resolve().is_relative_to(ROOT / ".demo")


def test_requirements_name_no_address_and_carry_hashes() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in path.read_text(), path.name
    lines = (ROOT / "requirements" / "all.txt").read_text().splitlines()
    pins = [line for line in lines if line[:1].isalpha()]
    assert all("==" in line and line.endswith("\\") for line in pins)
    assert any(line.startswith("whisperx==3.8.6") for line in pins)
    assert any(line.startswith("llama-cpp-python==0.3.36") for line in pins)


def test_requirements_pin_everything_that_pyproject_asks_for() -> None:
    text = (ROOT / "requirements" / "all.txt").read_text()
    pinned = {line.split("==")[0] for line in text.splitlines() if line[:1].isalpha()}
    for line in requires("coscheduler") or []:
        name = re.split(r"[;<>=!~\[ ]", line)[0].lower()
        assert name in pinned or name == "coscheduler", f"{name}: run scripts/requirements"
