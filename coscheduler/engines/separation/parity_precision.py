"""What each precision costs: its results beside those of float32, as a signal-to-noise ratio.

The same cases as `parity`, computed by this implementation in every precision; the reference is its
own float32, which parity holds to the official numbers.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from coscheduler.engines.separation import model as models
from coscheduler.engines.separation import parity
from coscheduler.engines.separation.parity import Array, Case

REFERENCE, PRECISIONS = "float32", ("bfloat16", "int8")
ARRAYS = ("velocity", "latent_final", "target_nowm", "residual_nowm")


@dataclass(frozen=True)
class Loss:
    """One array in one precision: 10 log10(energy of float32 / energy of the difference), dB."""

    set: str
    case: str
    array: str
    precision: str
    snr_db: float
    weight_bytes: int


def run(folder: Path) -> list[Loss]:
    """Every set below `folder`. Raises FileNotFoundError if there is none, or EngineFault."""
    sets = sorted(path.parent for path in folder.rglob("checkpoint.pt"))
    if not sets:
        raise FileNotFoundError(f"there is no vector set below {folder}")
    return [loss for path in sets for loss in _run_set(path, str(path.relative_to(folder)))]


def _run_set(path: Path, name: str) -> list[Loss]:
    wanted, _ = _results(path, REFERENCE)
    losses = []
    for precision in PRECISIONS:
        found, weight_bytes = _results(path, precision)
        losses += [
            Loss(name, case, array, precision, snr_db(wanted[case, array], value), weight_bytes)
            for (case, array), value in found.items()
        ]
    return sorted(losses, key=lambda loss: (loss.case, loss.array))


def _results(path: Path, precision: str) -> tuple[Mapping[tuple[str, str], Array], int]:
    """The arrays that tell, by case and name, and the bytes of all resident weights."""
    source = models.open_folder(path)
    found: dict[tuple[str, str], Array] = {}
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        prepared = source.prepare(precision, Path(scratch), parity.quiet)
        loaded = models.load(source.config, prepared, torch.device("cpu"), parity.quiet)
        for name, case, compute in _cases(path):
            for array, value in compute(loaded, case):
                if array in ARRAYS:
                    found[name, array] = np.asarray(value, dtype=np.float64)
    return found, loaded.bytes


def _cases(path: Path) -> list[tuple[str, Case, parity.Compute]]:
    """The cases in which the transformer takes part; the codec is float32 in all precisions."""
    files = sorted(file for kind in ("dit_", "separate_") for file in path.glob(f"{kind}*.npz"))
    return [
        (file.stem, parity.read_case(file, path), compute)
        for file in files
        if (compute := parity.compute_of(file.stem)) is not None
    ]


def snr_db(wanted: Array, found: Array) -> float:
    """Of `found` against `wanted`; inf where they are equal."""
    noise = float(np.sum(np.square(found - wanted)))
    return math.inf if noise == 0 else 10 * math.log10(float(np.sum(np.square(wanted))) / noise)
