"""What is on this machine of the models that a config needs. Nothing is asked of anybody."""

import re
from dataclasses import dataclass
from pathlib import Path

from coscheduler.engines import hub
from coscheduler.errors import EngineFault
from coscheduler.models.needs import Need

CARD_BYTES_MAX = 64 * 1024
LICENCE = re.compile(r"^license(?:_name)?:[ \t]*[\"']?([^\"'\n]+?)[\"']?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A need and what is there of it. `folder` None: nothing. `size_bytes` counts what is there."""

    need: Need
    folder: Path | None
    missing: tuple[str, ...]
    size_bytes: int
    licence: str  # as the model's card names it; "" where no card says

    @property
    def is_complete(self) -> bool:
        """Whether an engine could open it."""
        return self.folder is not None and not self.missing


def look(need: Need, cache_dir: Path | None = None) -> Found:
    """What is there of a model. Raises EngineFault LIBRARY_MISSING for a repository where the
    library of the hub is not installed.
    """
    folder = _folder(need, cache_dir)
    if folder is None:
        return Found(need, None, need.missing(iter(())), 0, "")
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in _files(need, folder)
        if path.is_file()
    }
    return Found(need, folder, need.missing(iter(files)), sum(files.values()), licence_of(folder))


def _files(need: Need, folder: Path) -> list[Path]:
    """All files of a folder; of one in which a plain GGUF lies among others only its own."""
    if need.repository is None and need.groups[0][0].endswith(".gguf"):
        return [folder / name for group in need.groups for name in group]
    return sorted(folder.rglob("*"))


def _folder(need: Need, cache_dir: Path | None) -> Path | None:
    """The model's folder, or the snapshot of its repository that would be used."""
    if need.repository is None:
        path = Path(need.name)
        folder = path.parent if need.groups[0][0].endswith(".gguf") else path
        return folder if path.exists() else None
    for group in need.groups:
        for name in group:
            try:
                return hub.fetch(need.repository, (name,), offline=True, cache_dir=cache_dir)
            except EngineFault as fault:
                if fault.reason != "MODEL_MISSING":
                    raise
    return None


def licence_of(folder: Path) -> str:
    """The licence that the front of the model's card names, "" without one."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            return licence_in(file.read(CARD_BYTES_MAX))
    except OSError:
        return ""


def licence_in(card: str) -> str:
    """`license` or, where that says no more than "other", `license_name` of the front matter."""
    front = card.split("\n---", 1)[0] if card.startswith("---") else ""
    names = LICENCE.findall(front)
    return next((name for name in names if name != "other"), names[0] if names else "")
