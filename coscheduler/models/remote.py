"""Repositories of the hub: what they have, under which terms, and fetching it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coscheduler.engines import hub
from coscheduler.engines.hub import Repository
from coscheduler.errors import EngineFault
from coscheduler.models.needs import Need

OnFile = Callable[[int, int, str, int], None]  # (number, of how many, name, its bytes)


@dataclass(frozen=True)
class Offered:
    """A repository at one commit. `gating` is "" for an open one, else how access is granted."""

    commit: str
    files: dict[str, int]  # bytes by name
    licence: str
    gating: str


def ask(source: Repository, endpoint: str | None = None, token: str | None = None) -> Offered:
    """What a repository has. Raises EngineFault MODEL_GATED, MODEL_MISSING or HUB_UNREACHABLE."""
    api = hub.library().HfApi(endpoint=endpoint, token=token)
    with hub.told(source, "its list of files"):
        info = api.model_info(source.name, revision=source.revision, files_metadata=True)
    card = vars(info.card_data) if info.card_data else {}
    return Offered(
        commit=str(info.sha),
        files={entry.rfilename: entry.size or 0 for entry in info.siblings or ()},
        licence=_licence(card),
        gating=str(info.gated) if info.gated else "",
    )


def _licence(card: dict[str, Any]) -> str:
    named = str(card.get("license") or "")
    return str(card.get("license_name") or named) if named in ("", "other") else named


def pull(
    need: Need,
    on_file: OnFile,
    *,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Bring a model's files into the local cache and return their folder.

    What is there is left alone, what was interrupted goes on where it ended, and large files are
    checked against the sha256 that the hub names. `token` None: HF_TOKEN, or the user's login.
    Raises EngineFault MODEL_GATED, MODEL_MISSING, MODEL_CORRUPT, DISK_FULL or HUB_UNREACHABLE.
    """
    source = need.repository
    if source is None:
        raise EngineFault(
            "MODEL_MISSING",
            f"{need.name} is a path: put the files there, or name a repository in the config "
            '("hub:owner/name")',
            path=need.name,
        )
    offered = ask(source, endpoint, token)
    names = need.wanted(iter(offered.files))
    _check(need, source, offered, names, cache_dir)
    folder = Path()
    for number, name in enumerate(names):
        on_file(number + 1, len(names), name, offered.files[name])
        # The first by the name that the config has, so that the cache knows what it stands for.
        at = source if number == 0 else replace(source, revision=folder.name)
        folder = hub.fetch(at, (name,), token=token, cache_dir=cache_dir, endpoint=endpoint)
    return folder


def _check(
    need: Need, source: Repository, offered: Offered, names: tuple[str, ...],
    cache_dir: Path | None,
) -> None:  # fmt: skip
    missing = need.missing(iter(offered.files))
    if missing:
        raise EngineFault(
            "MODEL_MISSING",
            f"{source.name} has no {', no '.join(missing)}: it is not what the {need.engine} "
            f"engine takes as its {need.role}",
            repository=source.name,
        )
    required = sum(offered.files[name] for name in _absent(source, offered, names, cache_dir))
    folder = _existing(cache_dir or _default_cache())
    free = shutil.disk_usage(folder).free
    if required > free:
        raise EngineFault(
            "DISK_FULL",
            f"{source.name} needs {required} more bytes and {folder} has {free}; make room, or set "
            "HF_HOME to another disk",
            required_bytes=required,
            available_bytes=free,
        )


def _absent(
    source: Repository, offered: Offered, names: tuple[str, ...], cache_dir: Path | None
) -> Iterator[str]:
    for name in names:
        known = hub.library().try_to_load_from_cache(
            source.name, name, cache_dir=cache_dir, revision=offered.commit
        )
        if not isinstance(known, str):
            yield name


def _default_cache() -> Path:
    return Path(hub.library().constants.HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
