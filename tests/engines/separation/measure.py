"""Run in a process of its own: what loading and running take, measured from outside the heap.

`python -m tests.engines.separation.measure MODELS OUT` prints one JSON object: recordings of one
window and of three. The process samples its own anonymous memory, as an engine's does.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from coscheduler import audio
from coscheduler.core.model import StageKind, total_bytes
from coscheduler.engines.base import Task
from coscheduler.engines.peak import PeakSampler
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.procfs import anonymous_bytes
from tests.engines.separation.conftest import finish, noise, settings_for


def main(models: Path, out: Path) -> dict[str, object]:
    engine = SeparationEngine(settings_for(models, window_ms=2000))
    engine.start()
    option = engine.describe().options[0]
    base = anonymous_bytes(os.getpid())
    engine.load(option, lambda done, total: None)
    loaded = anonymous_bytes(os.getpid())
    peaks = []
    for number, seconds in enumerate((1, 5)):
        recording, folder = out / f"{number}.wav", out / f"out{number}"
        audio.write_wav(recording, np.asarray(noise(seconds)), 48_000)
        folder.mkdir()
        parameters = {"prompt": "a man speaking"}
        task = Task("jobs/1", StageKind.SEPARATE, parameters, recording, folder, seconds * 1000)
        with PeakSampler() as sampler:
            finish(engine, task)
            measured = sampler.highest_bytes() - base
        peaks.append({"predicted": option.peak_bytes(seconds * 1000), "measured": measured})
    after = anonymous_bytes(os.getpid())
    engine.unload()
    return {
        "resident": {"predicted": total_bytes(option.resident), "measured": loaded - base},
        "peaks": peaks,
        "left_after_run": after - loaded,
        "returned_by_unload": after - anonymous_bytes(os.getpid()),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
