"""Passes over a stack of blocks with fewer and fewer of them resident, against what limits them.

For each number k of resident blocks: the time of a pass, beside the larger of computing alone (all
resident) and copying alone (the streamed blocks into slots, nothing computed), and beside what the
model of the pass says. Rounds are interleaved and their order changes. On a CUDA device also the
ways of accelerate and diffusers to run the same blocks, where those are installed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coscheduler.engines.streaming import modules, prepared
from coscheduler.engines.streaming.order import SLOTS, pass_time, streamed, useful_counts
from coscheduler.engines.streaming.prepared import PreparedFile
from coscheduler.engines.streaming.streamer import Streamer, open_copier

ROUNDS_MIN = 7
PASSES = 3  # in a measurement, after one that fills the slots
MIB = 1024 * 1024
PINNED_BYTES_MAX = 64 * 1024 * MIB

Work = Callable[[], object]


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        found = measure(chosen, Path(scratch))
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure streaming",
        description=__doc__.split("\n")[0],
        epilog="example: scripts/measure streaming --rows 16 256 --out streaming.json",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024, help="a block has 8 * width^2 weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="*", default=[16, 256], help="of the input")
    parser.add_argument("--kept", type=int, nargs="*", help="resident blocks (default: five)")
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < ROUNDS_MIN:
        parser.error(f"--rounds must be at least {ROUNDS_MIN}")
    chosen.device = torch.device(chosen.device)
    return chosen


class Block(nn.Module):
    """A residual feed-forward, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, width] -> the same."""
        y: Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return y


def measure(chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """A table for each number of rows; printed as it goes."""
    torch.manual_seed(0)
    dtype = prepared.DTYPES[chosen.dtype]
    blocks = [Block(chosen.width).to(dtype) for _ in range(chosen.blocks)]
    plans = modules.plan_blocks(blocks)
    file = prepared.prepare(scratch / "blocks", "k", plans, scratch, lambda done, total: None)
    found: dict[str, Any] = {"machine": machine(chosen), "tables": []}
    for rows in chosen.rows:
        x = torch.randn(rows, chosen.width, dtype=dtype, device=chosen.device)
        found["tables"].append(table(chosen, blocks, file, x))
    return found


def machine(chosen: argparse.Namespace) -> dict[str, Any]:
    """What it ran on, how busy that was, and the sizes."""
    cuda = chosen.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(chosen.device) if cuda else "cpu",
        "cores": os.cpu_count(), "threads": chosen.threads,
        "load_average_before": os.getloadavg()[0], "torch": torch.__version__,
        "blocks": chosen.blocks, "dtype": chosen.dtype, "rounds": chosen.rounds,
        "block_bytes": 8 * chosen.width**2 * prepared.DTYPES[chosen.dtype].itemsize,
    }  # fmt: skip


def table(
    chosen: argparse.Namespace, blocks: list[Block], file: PreparedFile, x: Tensor
) -> dict[str, Any]:
    """All ways with one input."""
    counts = chosen.kept or spread(useful_counts(chosen.blocks, SLOTS))
    skeletons = modules.without_weights(blocks)
    streamers = {kept: streamer_of(chosen, file, kept) for kept in counts}
    copying = Copying(chosen, file)
    work: dict[str, Work] = {
        f"kept {kept}": passes(chosen, skeletons, streamer, x)
        for kept, streamer in streamers.items()
    }
    work["copying"] = copying.run
    others, missing = rivals(chosen, blocks, x)
    seconds = interleaved({**work, **others}, chosen.rounds)
    for streamer in streamers.values():
        streamer.close()
    copying.close()
    rows = [row(chosen, kept, seconds, len(blocks)) for kept in counts]
    print(f"{len(x)} rows: copying a block {1000 * median(seconds['copying']):.2f} ms")
    print("\n".join(map(line, rows)), *missing, sep="\n", flush=True)
    return {
        "rows": len(x), "by_kept": rows, "not_compared": missing,
        "copy_block_s": median(seconds["copying"]),
        "link_bytes_per_s": round(len(file.raw("block.0")) / median(seconds["copying"])),
        "others_pass_s": {name: quartiles(seconds[name]) for name in others},
    }  # fmt: skip


def spread(counts: Sequence[int]) -> list[int]:
    """Five of them, the first and the last included."""
    return [counts[round(step * (len(counts) - 1) / 4)] for step in range(5)]


def streamer_of(chosen: argparse.Namespace, file: PreparedFile, kept: int) -> Streamer:
    """A streamer of its own for each number, so that nothing changes between rounds."""
    names = modules.block_names(chosen.blocks)
    streamer = Streamer(file, names, chosen.device, kept, pinned_max=PINNED_BYTES_MAX)
    streamer.settle()
    return streamer


def passes(
    chosen: argparse.Namespace, skeletons: Sequence[nn.Module], streamer: Streamer, x: Tensor
) -> Work:
    """A few passes as their owner writes them."""

    def run() -> None:
        for _ in range(PASSES):
            y = x
            for block in modules.calls(skeletons, streamer):
                y = block(y)
        finish(chosen.device)

    return run


class Copying:
    """The same copies without any computation: one block after the other into the slots."""

    def __init__(self, chosen: argparse.Namespace, file: PreparedFile) -> None:
        names = modules.block_names(chosen.blocks)
        self._copier = open_copier(file, chosen.device, PINNED_BYTES_MAX)
        self._copier.expect(names)
        self._copier.settle()
        self._slots = [self._copier.slot(len(file.raw(names[0]))) for _ in range(SLOTS)]
        self._names, self._device = names, chosen.device

    def run(self) -> None:
        """PASSES blocks (a measurement is divided by PASSES)."""
        for number in range(PASSES):
            slot = self._slots[number % SLOTS]
            slot.fill(self._names[number % len(self._names)])
            slot.wait()
            slot.used()
        finish(self._device)

    def close(self) -> None:
        """Give everything back."""
        for slot in self._slots:
            slot.close()
        self._copier.close()


def rivals(
    chosen: argparse.Namespace, blocks: list[Block], x: Tensor
) -> tuple[dict[str, Work], list[str]]:
    """The ways of others on a card, and why which are missing."""
    if chosen.device.type != "cuda":
        return {}, ["accelerate and diffusers are compared on a CUDA device only"]
    makers = {"accelerate": accelerate_offload, "diffusers": diffusers_offload}
    there = [name for name in makers if importlib.util.find_spec(name)]
    missing = [f"{name} is not installed: not compared" for name in makers if name not in there]
    return {name: makers[name](chosen, blocks, x) for name in there}, missing


def copied(blocks: list[Block]) -> nn.Sequential:
    """A stack of its own for each way: hooks stay on it."""
    stack = nn.Sequential(*(Block(block.up.in_features) for block in blocks))
    stack.to(blocks[0].up.weight.dtype).load_state_dict(nn.Sequential(*blocks).state_dict())
    return stack.eval()


def accelerate_offload(chosen: argparse.Namespace, blocks: list[Block], x: Tensor) -> Work:
    """accelerate: each module's weights come when it is called and go behind it."""
    accelerate = importlib.import_module("accelerate")
    stack = accelerate.cpu_offload(copied(blocks), execution_device=chosen.device)
    return repeated(chosen, stack, x)


def diffusers_offload(chosen: argparse.Namespace, blocks: list[Block], x: Tensor) -> Work:
    """diffusers: one block at a time with a stream that fetches the next."""
    hooks = importlib.import_module("diffusers.hooks")
    stack = copied(blocks)
    hooks.apply_group_offloading(
        stack, onload_device=chosen.device, offload_device=torch.device("cpu"),
        offload_type="block_level", num_blocks_per_group=1, use_stream=True,
    )  # fmt: skip
    return repeated(chosen, stack, x)


def repeated(chosen: argparse.Namespace, stack: nn.Module, x: Tensor) -> Work:
    """As many passes as ours."""

    def run() -> None:
        for _ in range(PASSES):
            stack(x)
        finish(chosen.device)

    return run


def finish(device: torch.device) -> None:
    """Wait until all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(work: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work divided by PASSES, round by round in changing order."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    for number in range(rounds):
        names = list(work)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            work[name]()
            seconds[name].append((time.perf_counter() - begun) / PASSES)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def row(
    chosen: argparse.Namespace, kept: int, seconds: dict[str, list[float]], count: int
) -> dict[str, Any]:
    """Measured against both limits, round by round, and the model of a pass."""
    compute, copy = median(seconds[f"kept {count}"]), median(seconds["copying"])
    flags = streamed(count, kept)
    waits = sum(flags) if sum(flags) > SLOTS else 0
    measured = seconds[f"kept {kept}"]
    bounds = [
        max(alone, waits * one)
        for alone, one in zip(seconds[f"kept {count}"], seconds["copying"], strict=True)
    ]
    ratios = [ours / bound for ours, bound in zip(measured, bounds, strict=True)]
    return {
        "kept": kept,
        "pass_s": quartiles(measured),
        "compute_s": compute,
        "transfer_s": waits * copy,
        "model_s": pass_time(compute / count, copy, flags, SLOTS),
        "over_bound": quartiles(ratios),
    }


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def line(found: dict[str, Any]) -> str:
    """A row for people, in milliseconds."""
    over = found["over_bound"]
    return (
        f"  kept {found['kept']:3}: {1000 * found['pass_s']['median']:8.2f}"
        f"  computing {1000 * found['compute_s']:8.2f}  copying {1000 * found['transfer_s']:8.2f}"
        f"  model {1000 * found['model_s']:8.2f}  of the larger {over['median']:.2f}"
        f" ({over['low']:.2f} to {over['high']:.2f})"
    )
