"""The table of `parity` for people and, with --json, for programs."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from coscheduler.config import FLOAT16_REFUSED
from coscheduler.engines.separation import parity, parity_precision
from coscheduler.engines.separation.parity import Row
from coscheduler.engines.separation.parity_precision import Loss
from coscheduler.errors import EngineFault


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all sets below a folder. 0: all pass, 1: some do not, 2: nothing to compare."""
    parser = argparse.ArgumentParser(prog="scripts/parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="vector sets lie anywhere below it")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--precision",
        action="store_true",
        help="show what bfloat16 and int8 cost, against this implementation's own float32",
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.precision:
            losses = parity_precision.run(chosen.folder)
            print(losses_as_json(losses) if chosen.json else losses_as_table(losses))
            return 0
        rows = parity.run(chosen.folder)
    except FileNotFoundError as error:
        print(f"scripts/parity: {error}", file=sys.stderr)
        return 2
    except EngineFault as error:
        print(f"scripts/parity: {error.reason}: {error.message}", file=sys.stderr)
        return 1
    print(as_json(rows) if chosen.json else as_table(rows))
    return 0 if all(row.passed for row in rows) else 1


def as_table(rows: Sequence[Row]) -> str:
    """One line for each compared array, the verdict last."""
    head = ("case", "array", "max abs error", "tolerance", "pass")
    text = _columns([head, *(_cells(row) for row in rows)])
    failed = sum(not row.passed for row in rows)
    return "\n".join([*text, "", f"{len(rows)} arrays compared, {failed} failed"])


def losses_as_table(losses: Sequence[Loss]) -> str:
    """One line for each array and precision, with the bytes of all weights."""
    head = ("case", "array", "precision", "SNR against float32", "weights")
    rows = [
        (
            f"{loss.set}/{loss.case}", loss.array, loss.precision, f"{loss.snr_db:.1f} dB",
            f"{loss.weight_bytes} bytes",
        )
        for loss in losses
    ]  # fmt: skip
    return "\n".join([*_columns([head, *rows]), "", FLOAT16_REFUSED])


def losses_as_json(losses: Sequence[Loss]) -> str:
    """`{"rows": [...], "refused": {"float16": why}}`; an infinite ratio is null."""
    rows = [
        {**vars(loss), "snr_db": loss.snr_db if math.isfinite(loss.snr_db) else None}
        for loss in losses
    ]
    return json.dumps({"rows": rows, "refused": {"float16": FLOAT16_REFUSED}})


def _columns(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def as_json(rows: Sequence[Row]) -> str:
    """`{"passed": bool, "rows": [...]}`; an error that is no number (wrong shape) is null."""
    entries = [
        {
            "set": row.set,
            "case": row.case,
            "array": row.array,
            "max_abs_error": row.error if math.isfinite(row.error) else None,
            "tolerance": row.tolerance,
            "passed": row.passed,
        }
        for row in rows
    ]
    return json.dumps({"passed": all(row.passed for row in rows), "rows": entries})


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "yes" if row.passed else "NO"
    return (f"{row.set}/{row.case}", row.array, f"{row.error:.2e}", f"{row.tolerance:.0e}", verdict)


if __name__ == "__main__":
    sys.exit(main())
