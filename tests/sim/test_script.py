"""scripts/simulate: worlds by their seeds, and journals."""

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from tests.runtime.test_journal import told

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "simulate"


def simulate(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_worlds_are_run_and_summed_up_within_the_time() -> None:
    done = simulate("--seeds", 4, "--start", 10)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 worlds from seed 10")
    assert "succeeded" in done.stdout
    assert simulate("--seeds", 100_000, "--hours", 0).stdout.startswith("1 worlds")


def test_a_journal_is_replayed_and_a_difference_is_shown(tmp_path: Path) -> None:
    told(tmp_path)
    path = tmp_path / "journal.jsonl"
    same = simulate("--replay", path)
    assert (same.returncode, same.stdout) == (0, "8 events, 0 decided otherwise\n")
    path.write_text(path.read_text().replace('"option": "full"', '"option": "half"'))
    other = simulate("--replay", path)
    assert other.returncode == 1
    assert "line 3, Submitted" in other.stdout and "1 decided otherwise" in other.stdout
    assert simulate("--replay", tmp_path / "none").returncode == 2


def test_every_mutation_still_fits_the_source(tmp_path: Path) -> None:
    """scripts/mutate takes minutes; that its list is not stale is seen at once."""
    path = str(ROOT / "scripts" / "mutate")
    loader = importlib.machinery.SourceFileLoader("mutate", path)
    spec = importlib.util.spec_from_loader("mutate", loader)
    assert spec is not None
    mutate = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = mutate  # its dataclass looks itself up
    loader.exec_module(mutate)
    mutations = mutate.read_list(mutate.LIST)
    assert len(mutations) >= 80
    assert len({mutation.name for mutation in mutations}) == len(mutations)
    folder = tmp_path / "coscheduler" / "core"
    shutil.copytree(ROOT / "coscheduler" / "core", folder)
    for mutation in mutations:
        mutation.apply(tmp_path)
        shutil.copy(ROOT / "coscheduler" / "core" / mutation.file, folder)
