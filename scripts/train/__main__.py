"""Train or measure one of the demonstration's models: `python scripts/train NAME [arguments]`.

Each NAME is a file scripts/train/NAME.py with a `main(arguments) -> int`; without arguments, the
names. Needs the extra `train`, and libespeak-ng (Debian and Ubuntu: apt-get install libespeak-ng1).
"""

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "scripts" / "train"


def ensure_environment() -> None:
    """Go on with the environment's Python when this one is another."""
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        os.execv(python, [str(python), str(FOLDER), *sys.argv[1:]])  # noqa: S606 this script again


def names() -> list[str]:
    """What can be run: the modules that have a `main`."""
    return sorted(
        path.stem
        for path in FOLDER.glob("[a-z]*.py")
        if "\ndef main(" in path.read_text(encoding="utf-8")
    )


def main() -> int:
    """Return the exit status."""
    if len(sys.argv) < 2 or sys.argv[1] not in names():
        print(
            f"usage: python scripts/train NAME [--help]; NAME is one of: {', '.join(names())}",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(ROOT / "scripts"))
    status: int = importlib.import_module(f"train.{sys.argv[1]}").main(sys.argv[2:])
    return status


if __name__ == "__main__":
    ensure_environment()
    sys.exit(main())
