"""`coscheduler models list`, `pull` and `check --config`: the models that a config needs."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from coscheduler.cli import EXIT_DONE, EXIT_FAILED, say
from coscheduler.config import load
from coscheduler.core.model import EngineName
from coscheduler.engines import describe, hub
from coscheduler.errors import CoschedulerError, EngineFault
from coscheduler.models import local, needs, remote
from coscheduler.models.local import Found
from coscheduler.models.needs import Need


@dataclass(frozen=True)
class Row:
    """A model as it is told. `gating` and `download_bytes` None: nobody was asked."""

    engine: str
    role: str
    name: str
    folder: str | None
    missing: tuple[str, ...]
    size_bytes: int
    licence: str
    gating: str | None = None
    download_bytes: int | None = None
    error: str | None = None

    @property
    def is_fine(self) -> bool:
        """Whether an engine can open it, as far as was looked."""
        return self.folder is not None and not self.missing and self.error is None


def show(config: Path, online: bool, as_json: bool) -> int:
    """List what the config needs and what is there of it; `online` asks the hub for the rest."""
    rows = [_row(local.look(need), online) for need in needs.of(load(config))]
    _print(rows, as_json)
    return EXIT_DONE if all(row.is_fine for row in rows) else EXIT_FAILED


def fetch(config: Path, engine: EngineName | None, as_json: bool) -> int:
    """Bring what is missing into the local cache of the hub, model by model; one that fails does
    not stop the others.
    """
    wanted = [need for need in needs.of(load(config)) if engine in (None, need.engine)]
    rows = [_fetched(need) for need in wanted]
    _print(rows, as_json)
    return EXIT_DONE if all(row.is_fine for row in rows) else EXIT_FAILED


def check(config: Path, as_json: bool) -> int:
    """Open every model as its engine would, by its headers; compare checksums of large files."""
    config = config.resolve()
    settings = load(config)
    wanted = needs.of(settings)
    rows = [_checked(local.look(need)) for need in wanted]
    engines = {
        str(engine): describe.ask(config, engine)
        for engine in dict.fromkeys(need.engine for need in wanted)
    }
    _print(rows, as_json, engines)
    fine = all(row.is_fine for row in rows) and not any("error" in e for e in engines.values())
    return EXIT_DONE if fine else EXIT_FAILED


def _row(found: Found, online: bool) -> Row:
    source = found.need.repository
    row = _of(found)
    if not online or source is None:
        return row
    try:
        offered = remote.ask(source, _endpoint())
    except CoschedulerError as error:
        return _with(row, error=error.message)
    names = found.need.wanted(iter(offered.files))
    return _with(
        row,
        licence=row.licence or offered.licence,
        gating=offered.gating,
        download_bytes=sum(offered.files[name] for name in names),
    )


def _fetched(need: Need) -> Row:
    found = local.look(need)
    if need.repository is None:
        return _of(found) if found.is_complete else _with(_of(found), error=_by_hand(need))
    try:
        remote.pull(need, lambda *file: _tell(need, *file), endpoint=_endpoint())
    except CoschedulerError as error:
        return _with(_of(local.look(need)), error=error.message)
    return _of(local.look(need))


def _endpoint() -> str | None:
    """The hub's address, where it is another than usual: a mirror."""
    return os.environ.get("HF_ENDPOINT") or None


def _tell(need: Need, number: int, count: int, name: str, size_bytes: int) -> None:
    say.notice(f"{need.name}: {number} of {count}: {name}, {say.size(size_bytes)}")


def _by_hand(need: Need) -> str:
    return (
        "a path: put the files there, or name a repository in the config "
        f'("hub:owner/name" for the {need.role})'
    )


def _checked(found: Found) -> Row:
    """Large files of the cache lie under their checksum; nothing else is known of plain folders."""
    source = found.need.repository
    if source is None or found.folder is None:
        return _of(found)
    try:
        for path in sorted(found.folder.rglob("*")):
            if path.is_file():
                hub.verify(path, source)
    except EngineFault as fault:
        return _with(_of(local.look(found.need)), error=fault.message)
    return _of(found)


def _of(found: Found) -> Row:
    folder = None if found.folder is None else str(found.folder)
    need = found.need
    return Row(
        str(need.engine), need.role, need.name, folder, found.missing, found.size_bytes,
        found.licence,
    )  # fmt: skip


def _with(row: Row, **changes: Any) -> Row:
    return Row(**{**asdict(row), **changes})


def _print(
    rows: Sequence[Row], as_json: bool, engines: dict[str, dict[str, Any]] | None = None
) -> None:
    if as_json:
        told: dict[str, Any] = {"models": [{**asdict(row), "ok": row.is_fine} for row in rows]}
        say.print_json(told if engines is None else {**told, "engines": engines})
        return
    console = say.console()
    console.print(_table(rows))
    for row in rows:
        if row.error:
            console.print(Text(f"{row.engine} {row.role}: {say.printable(row.error)}"))
    for name, answer in (engines or {}).items():
        console.print(Text(f"{name}: {say.printable(engine_line(answer))}"))


def engine_line(answer: dict[str, Any]) -> str:
    """What an engine said of itself, in a sentence."""
    if "error" in answer:
        error = answer["error"]
        return say.sentence(error["reason"], error["message"], error["numbers"])
    options = answer["options"]
    least = min(option["peak_bytes"] for option in options)
    return f"{answer['model']} can be opened; {len(options)} options, from {say.size(least)} on"


def _table(rows: Sequence[Row]) -> Table:
    table = Table("engine", "model", "there", "size", "licence", "access")
    for row in rows:
        name = say.printable(f"{row.role}: {row.name}")
        cells = (
            row.engine,
            name,
            _there(row),
            _size(row),
            row.licence or "not stated",
            _access(row),
        )
        table.add_row(*map(Text, cells))
    return table


def _there(row: Row) -> str:
    if row.folder is None:
        return "no"
    return f"lacks {', '.join(row.missing)}" if row.missing else "yes"


def _size(row: Row) -> str:
    if row.download_bytes is not None and not row.is_fine:
        return f"{say.size(row.download_bytes)} to fetch"
    return say.size(row.size_bytes) if row.folder else ""


def _access(row: Row) -> str:
    if not hub.is_name(row.name):
        return "yours"
    if row.gating is None:
        return "not asked"
    return f"gated ({row.gating}): accept its terms, set HF_TOKEN" if row.gating else "open"
