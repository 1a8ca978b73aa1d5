"""`coscheduler models check`: what a GGUF file needs, before any memory is taken."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from coscheduler.cli import say
from coscheduler.cli.sizes import parse_size
from coscheduler.config import AnalysisSettings, DeviceSettings
from coscheduler.errors import EngineFault, Refused, from_parts
from coscheduler.runtime.meter import open_meter

MODULE = "coscheduler.engines.analysis.check"  # run as a process: it loads the engine's library
SECONDS_MAX = 600


def check(
    path: Path, kv_budget: str | None, n_ctx: int, kv_type: str, memory: str | None, as_json: bool
) -> None:
    """Print what the model needs. `n_ctx` 0: the largest that fits the budget; without a budget,
    `n_ctx` is not limited by one.

    Raises InvalidInput SIZE_INVALID, or EngineFault with what is wrong with the file or budget.
    """
    budget = parse_size(kv_budget) if kv_budget else _default_budget(n_ctx)
    device, available = _device()
    found = _ask(
        {
            "path": str(path.resolve()),
            "kv_budget_bytes": budget,
            "memory_bytes": parse_size(memory) if memory else available,
            "on_gpu": device == "cuda" or memory is not None,
            "n_ctx": n_ctx,
            "kv_type": kv_type,
        }
    )
    if as_json:
        say.print_json(found)
    else:
        say.console().print(_view(found))


def _default_budget(n_ctx: int) -> int | None:
    if n_ctx:
        return None  # a context of one's own choice: whatever it takes
    return int(AnalysisSettings.model_fields["kv_cache_max"].default)


def _device() -> tuple[str, int]:
    """The device of this machine and what it has to give, bytes: the card if there is one."""
    try:
        name, meter = "cuda", open_meter(DeviceSettings(device="cuda"))
    except Refused:
        name, meter = "cpu", open_meter(DeviceSettings())
    total, used = meter.device_bytes()
    return name, total - used


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of the engine's own process."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE, str(os.getpid())],
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS_MAX,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().rpartition("\n")[2]
        raise EngineFault(
            "CHECK_FAILED", f"the check ended with status {done.returncode}: {last}"
        ) from None
    if "error" in answer:
        raise from_parts(**answer["error"])
    return answer


def _view(found: dict[str, Any]) -> Group:
    return Group(_facts(found), _cache_table(found), _work_table(found))


def _facts(found: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=f"{found['model']} ({found['architecture']})")
    table.add_column()
    table.add_column()
    layers: list[int] = found["layers"]
    compute = say.size(found["compute_bytes"])
    if found["compute_is_estimate"]:
        compute = f"about {compute} (an estimate: measured on the CPU's graph)"
    budget = found["kv_budget_bytes"]
    rows = {
        "KV budget": "none" if budget is None else say.size(budget),
        "context": f"{found['n_ctx']} tokens in {found['kv_type']}, of {found['n_ctx_train']} "
        "that it was trained for",
        "weights": say.size(found["weights_bytes"]),
        "layers": f"{len(layers)}, {say.size(min(layers))} to {say.size(max(layers))} each",
        "compute buffer": compute,
        "layers that fit": f"{found['layers_fitting']} of {len(layers)}, in "
        f"{say.size(found['memory_bytes'])} of {'a card' if found['device'] == 'cuda' else 'RAM'}",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _cache_table(found: dict[str, Any]) -> Table:
    table = Table("KV type", f"cache at {found['n_ctx']}", "largest context in the budget")
    for kv_type, size in found["kv_bytes"].items():
        if size is None:
            table.add_row(kv_type, "not with this head size", "")
        else:
            table.add_row(kv_type, say.size(size), str(found["n_ctx_fitting"][kv_type]))
    return table


def _work_table(found: dict[str, Any]) -> Table:
    title = f"at {found['n_ctx']} tokens"
    table = Table("work", "tokens", f"KV cache at once, {found['kv_type']}", title)
    for work in found["work"]:
        size = work["kv_bytes"][found["kv_type"]]
        table.add_row(work["what"], str(work["tokens"]), say.size(size), _how(work))
    return table


def _how(work: dict[str, Any]) -> str:
    if work["fits"]:
        return "fits"
    return f"in {work['pieces']} pieces" if work["pieces"] else "does not fit"
