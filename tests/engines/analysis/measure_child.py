"""Run an analysis engine in a process of its own and print its anonymous memory, bytes, as JSON."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from coscheduler import config
from coscheduler.core.model import StageKind, total_bytes
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.base import Task
from coscheduler.procfs import anonymous_bytes


def main() -> None:
    request = json.loads(sys.argv[1])
    analysis = request | {"n_ctx_max": 8192, "n_ctx_min": 4096, "n_batch": 256}
    values = {"device": {"threads": 1}, "analysis": analysis, "store": {"data_dir": sys.argv[2]}}
    settings = config.parse(values, Path.cwd())
    engine = AnalysisEngine(settings)
    option = engine.describe().options[0]
    engine.start()
    base = anonymous_bytes(os.getpid())

    def grown() -> int:
        return anonymous_bytes(os.getpid()) - base

    seen = {
        "predicted_resident": total_bytes(option.resident),
        "predicted_peak": option.peak_bytes(60_000),
    }
    engine.load(option, lambda done, total: None)
    seen["loaded"] = grown()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk.txt"
        path.write_text("We ship the release on friday and write the report.\n" * 40)
        task = Task(
            "jobs/m", StageKind.ANALYZE, {"template": "summary"}, path, Path(folder), 60_000
        )
        seen["peak"] = max(grown() for _ in engine.slices(task))
        seen["after_run"] = grown()
        slices = engine.slices(task)
        next(slices)
        slices.close()
        seen["after_cancel"] = grown()
    engine.unload()
    seen["unloaded"] = grown()
    print(json.dumps(seen))


main()
