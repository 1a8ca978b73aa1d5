"""The reference numbers, wherever they lie, and the comparing itself on a set of our own."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from coscheduler.engines.separation import parity, parity_report
from coscheduler.engines.separation.codec import Encoding
from coscheduler.engines.separation.model import LoadedModel

REPO = Path(__file__).parents[3]
VECTORS = Path(os.environ.get("COSCHEDULER_VECTORS", REPO.parent / "shared" / "vectors"))
SCRIPT = REPO / "scripts" / "parity"


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no reference vectors in {VECTORS}")
def test_every_reference_vector_is_met() -> None:
    rows = parity.run(VECTORS)
    assert [row for row in rows if not row.passed] == []
    kinds = {row.case.split("_")[0].split("[")[0] for row in rows}
    assert {"codec", "dit", "separate"} <= kinds


@pytest.fixture
def own_set(models: Path, loaded: LoadedModel, tmp_path: Path) -> Callable[[float], Path]:
    """A set with one case, its features off by an amount, in a folder of any name."""

    def make(off: float) -> Path:
        folder = tmp_path / "root" / "deep" / "my set"
        shutil.copytree(models / "sam", folder)
        waveform = torch.linspace(-0.5, 0.5, 3840)[None, None]
        with torch.inference_mode():
            encoding = Encoding(loaded.weights("encoder"), loaded.config.audio_codec)
            features = encoding.push(waveform, True).numpy()
        np.savez(folder / "codec_encode.npz", waveform=waveform.numpy(), features=features + off)
        (tmp_path / "root" / "tolerance.json").write_text(json.dumps({"features": 1e-4}))
        return tmp_path / "root"

    return make


def test_equal_numbers_pass(
    own_set: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity_report.main([str(own_set(0.0))]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["case", "array", "max", "abs", "error", "tolerance", "pass"]
    assert table[1].startswith("deep/my set/codec_encode  features")
    assert table[-1] == "1 arrays compared, 0 failed"


def test_other_numbers_fail_with_exit_1(
    own_set: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity_report.main([str(own_set(0.01)), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (row,) = report["rows"]
    assert report["passed"] is False
    assert row["max_abs_error"] == pytest.approx(0.01, rel=0.05)
    assert (row["set"], row["case"], row["array"]) == ("deep/my set", "codec_encode", "features")


def test_a_wrong_shape_fails_and_is_null(
    own_set: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own_set(0.0)
    path = root / "deep" / "my set" / "codec_encode.npz"
    arrays = dict(np.load(path))
    np.savez(path, waveform=arrays["waveform"], features=arrays["features"][:, :5])
    assert parity_report.main([str(root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"][0]["max_abs_error"] is None


def test_a_case_of_an_unknown_kind_fails(own_set: Callable[[float], Path]) -> None:
    root = own_set(0.0)
    np.savez(root / "deep" / "my set" / "video.npz", frames=np.zeros(3))
    assert [row.array for row in parity.run(root) if not row.passed] == ["unknown kind of case"]


def test_facts_of_the_processor_are_compared_exactly(tmp_path: Path) -> None:
    fact = {
        "lengths": [3000],
        "anchors": [[["+", 0.0, 0.04]]],
        "sizes": [2],
        "T": 2,
        "output_samples": [3840],
        "audio_pad_mask": [[1, 1]],
        "anchor_ids": [[0, 3, 1]],
        "anchor_alignment": [[2, 0]],
    }
    (tmp_path / "processor_facts.json").write_text(json.dumps([fact]))
    assert all(row.passed for row in parity.run(tmp_path))
    fact["anchor_alignment"] = [[0, 2]]
    (tmp_path / "processor_facts.json").write_text(json.dumps([fact]))
    assert [row.array for row in parity.run(tmp_path) if not row.passed] == ["anchor_alignment"]


def test_the_script_says_when_there_is_nothing_to_compare(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no vector set" in done.stderr
