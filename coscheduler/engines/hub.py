"""Model folders from a repository of the Hugging Face hub, through `huggingface_hub` and its cache.

Weights are their owner's: nothing is fetched but the files that are read, gated repositories need
the user's own token and consent, and a folder's files all come from one commit. What is downloaded
is checked once against the sha256 by which the hub names large files.
"""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coscheduler.errors import EngineFault

MODEL_FILES = ("config.json", "checkpoint.pt")
TEXT_ENCODER_FILES = ("config.json", "tokenizer.json", "model.safetensors")
PREFIX = "hub:"
NAME = re.compile(r"((?:[\w.-]+/)?[\w.-]+?)(?:/([\w./-]+\.gguf))?")
CACHED = re.compile(r"models--(?:.+--)?(.+)")  # how the cache names a repository's folder
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Repository:
    """A repository, "owner/name", and a branch, tag or commit; None: the default branch.

    `file` is the one that is meant, where it is not the whole: a GGUF.
    """

    name: str
    revision: str | None = None
    file: str = ""


def parse(text: str) -> Repository:
    """Read "hub:owner/name", "owner/name" or either with "@revision"; "owner/name/file.gguf" names
    one file of a repository.

    Raises EngineFault MODEL_MISSING for what cannot be the name of a repository.
    """
    name, _, revision = text.removeprefix(PREFIX).partition("@")
    match = NAME.fullmatch(name)
    if match is None or ".." in name.split("/") or (match[2] and "/" not in match[1]):
        raise EngineFault(
            "MODEL_MISSING", f"{text!r} is no folder and no repository (owner/name)", model=text
        )
    return Repository(match[1], revision or None, match[2] or "")


def is_name(path: Path | str) -> bool:
    """Whether a model of a config is named by its repository."""
    return str(path).startswith(PREFIX)


def located(path: Path, marker: str) -> Path:
    """Where a model of a config is: a path as it is, of a repository what the local cache has, its
    folder or its one file. `marker` is a file that the folder must have; nothing is downloaded.

    Raises EngineFault MODEL_MISSING.
    """
    if not is_name(path):
        return path
    source = parse(str(path))
    folder = fetch(source, (source.file or marker,), offline=True)
    return folder / source.file


def title(folder: Path) -> str:
    """A folder's name for people; of a snapshot in the cache that of its repository."""
    for parent in folder.parents:
        match = CACHED.fullmatch(parent.name)
        if match is not None and folder.parent.name == "snapshots":
            return match[1]
    return folder.name


def fetch(
    source: Repository,
    files: tuple[str, ...],
    *,
    offline: bool = False,
    token: str | None = None,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """The folder of the cached snapshot with `files` in it; what is not there is downloaded.

    `token` None: the one that the user is logged in with. Raises EngineFault MODEL_GATED,
    MODEL_MISSING, MODEL_CORRUPT (checksum), DISK_FULL or HUB_UNREACHABLE.
    """
    commit = source.revision
    folder = Path()
    for name in files:
        path = _file(source, name, commit, offline, token, cache_dir, endpoint)
        folder = path.parents[name.count("/")]
        commit = folder.name
    return folder


def _file(
    source: Repository,
    name: str,
    revision: str | None,
    offline: bool,
    token: str | None,
    cache_dir: Path | None,
    endpoint: str | None,
) -> Path:
    hub = library()
    known = hub.try_to_load_from_cache(
        source.name, name, cache_dir=cache_dir, revision=revision or "main"
    )
    with told(source, name, offline):
        path = Path(
            hub.hf_hub_download(
                source.name, name, revision=revision, token=token, cache_dir=cache_dir,
                local_files_only=offline, endpoint=endpoint,
            )
        )  # fmt: skip
    if not isinstance(known, str):
        verify(path, source)
    return path


def library() -> Any:
    """`huggingface_hub`: slow to import, and only needed for repositories.

    Raises EngineFault LIBRARY_MISSING; it comes with the engines of separation and transcription.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise EngineFault(
            "LIBRARY_MISSING",
            "repositories need huggingface_hub: pip install huggingface_hub, or name a path",
            missing="huggingface_hub",
        ) from None
    return huggingface_hub


@contextmanager
def told(source: Repository, name: str, offline: bool = False) -> Iterator[None]:
    """Around a call of the library about `name`: its errors in our words, as of `fetch`."""
    errors = library().errors
    try:
        yield
    except errors.GatedRepoError:
        raise EngineFault(
            "MODEL_GATED",
            f"{source.name} is gated: accept its terms on its page, then log in (hf auth login), "
            "set HF_TOKEN or pass a token",
            repository=source.name,
        ) from None
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise _missing(source, name, offline, error) from None
        raise _unreachable(source, name, error) from None
    except (
        errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError,
    ) as error:  # fmt: skip
        raise _missing(source, name, offline, error) from None
    except OSError as error:
        raise _unreachable(source, name, error) from None


def _missing(source: Repository, name: str, offline: bool, error: Exception) -> EngineFault:
    where = f"{source.name} at {source.revision or 'its default branch'}"
    if offline:
        text = (
            f"{name} of {where} is not in the local cache, and nothing is downloaded here; "
            "`coscheduler models pull --config FILE` fetches it"
        )
    else:
        text = f"there is no {name} in {where}, or no right to see it: {_first_line(error)}"
    return EngineFault("MODEL_MISSING", text, repository=source.name, file=name)


def _unreachable(source: Repository, name: str, error: OSError) -> EngineFault:
    """`requests` derives its errors from OSError; a full disk is one too."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineFault(
            "DISK_FULL", f"no room for {name} of {source.name}", repository=source.name, file=name
        )
    return EngineFault(
        "HUB_UNREACHABLE",
        f"{name} of {source.name} cannot be fetched: {_first_line(error)}",
        repository=source.name,
        file=name,
    )


def verify(path: Path, source: Repository) -> None:
    """Large files lie in the cache under their sha256. One that differs is deleted, and raises
    EngineFault MODEL_CORRUPT.
    """
    blob = path.resolve()
    if SHA256.fullmatch(blob.name) is None:
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        path.unlink()
        blob.unlink()
        raise EngineFault(
            "MODEL_CORRUPT",
            f"{path.name} of {source.name} has sha256 {digest.hexdigest()}, not {blob.name}; "
            "it was deleted: try again",
            file=path.name, expected=blob.name, found=digest.hexdigest(),
        )  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
