"""Fixtures that more than one folder of tests needs."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from coscheduler import config
from coscheduler.config import Settings
from coscheduler.demo import models
from coscheduler.logs import JsonFormatter

# Times are not tested: a busy machine must not fail an example.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_models() -> Path:
    """The folder of the tiny models, written first where they are missing or of another version."""
    folder = ROOT / ".demo" / "models"
    if not models.is_current(folder):
        # In a process of its own: the writers import torch and more, and leave threads behind.
        subprocess.run([sys.executable, "-m", "coscheduler.demo.models", str(folder)], check=True)
    return folder


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    """A command that was called within a test logs to that test's stderr, and to no later one's."""
    root = logging.getLogger()
    level = root.level
    yield
    root.handlers[:] = [h for h in root.handlers if not isinstance(h.formatter, JsonFormatter)]
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def demo_settings(tiny_models: Path, tmp_path: Path) -> Settings:
    """`configs/tiny.toml` with a store and a socket of this test's own.

    The prepared weights stay where the demonstration keeps them: they depend on the model alone.
    """
    settings = config.load(ROOT / "configs" / "tiny.toml")
    store = settings.store.model_copy(update={"data_dir": tmp_path / "store"})
    server = settings.server.model_copy(update={"listen": f"unix:{tmp_path / 'coscheduler.sock'}"})
    return settings.model_copy(update={"store": store, "server": server})
