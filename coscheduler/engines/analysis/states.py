"""Saved sequences: what a context held of a text, in files that outlive the context.

So a conversation, or the beginning that prompts of a template share, need not be read again after
the model was evicted, its process ended, or another task had the context. The files belong to the
host's memory (page cache) and are bounded; the oldest go first. The tokens stand beside each state:
it is used for any text that begins alike.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coscheduler.chat import PART_SUFFIX, STATE_SUFFIX, TOKENS_SUFFIX
from coscheduler.engines.analysis.sequences import Context

TOKENS_MIN = 16  # fewer are read again as fast as they are found


@dataclass(frozen=True)
class Found:
    """A saved state that begins with the first `common_count` tokens of a text."""

    path: Path
    common_count: int


class States:
    """The states in a folder that fit one way of loading one model; None keeps nothing."""

    def __init__(self, folder: Path | None, bytes_max: int, identity: Mapping[str, Any]) -> None:
        """`identity` names the model, KV type and whatever else a state depends on."""
        self._folder = folder if bytes_max else None
        self._bytes_max = bytes_max
        named = json.dumps(dict(identity), sort_keys=True)
        self._prefix = hashlib.sha256(named.encode()).hexdigest()[:16]
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in self._folder.glob(f"*{PART_SUFFIX}"):
                part.unlink(missing_ok=True)

    def save(self, context: Context, sequence: int, key: str, tokens: Sequence[int]) -> bool:
        """Keep what a sequence holds, which are these tokens, under a key; False where it would not
        fit the bound by itself, or the disk is full.
        """
        if self._folder is None or len(tokens) < TOKENS_MIN:
            return False
        path = self._path(key)
        part = path.with_suffix(PART_SUFFIX)
        self._remove(path)
        self._make_room(context.state_bytes(sequence) + 4 * len(tokens))
        if not context.save(part, sequence) or self._size(part) > self._bytes_max:
            part.unlink(missing_ok=True)
            return False
        part.replace(path)
        path.with_suffix(TOKENS_SUFFIX).write_bytes(array("i", tokens).tobytes())
        self._make_room(0)
        return path.exists()

    def longest(self, tokens: Sequence[int]) -> Found | None:
        """The state with the longest beginning in common with a text; the newest of equals."""
        best: Found | None = None
        for path in reversed(self._by_age()):
            if path.name.startswith(self._prefix):
                count = _common_count(_tokens_of(path), tokens)
                if count >= TOKENS_MIN and (best is None or count > best.common_count):
                    best = Found(path, count)
        return best

    def of(self, key: str, tokens: Sequence[int]) -> Found | None:
        """The state under this key, if it holds exactly a beginning of these tokens."""
        path = self._path(key) if self._folder is not None else Path()
        held = _tokens_of(path) if self._folder is not None and path.exists() else []
        if not held or _common_count(held, tokens) < len(held):
            return None
        return Found(path, len(held))

    def restore(self, found: Found, context: Context, sequence: int) -> int:
        """Bring a state into an empty sequence; the number of its tokens that are of use there, 0
        where the library refuses it.
        """
        if not context.restore(found.path, sequence):
            self._remove(found.path)
            return 0
        found.path.touch()
        is_kept = context.rewind(found.common_count, sequence)
        return found.common_count if is_kept else 0

    def drop(self, key: str) -> None:
        """Forget the state under a key."""
        if self._folder is not None:
            self._remove(self._path(key))

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        named = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self._folder / f"{self._prefix}-{named}{STATE_SUFFIX}"

    def _by_age(self) -> list[Path]:
        """Those that are whole, of any identity, the oldest first."""
        if self._folder is None:
            return []
        ages = [(path.stat().st_mtime_ns, path) for path in self._folder.glob(f"*{STATE_SUFFIX}")]
        return [path for _, path in sorted(ages) if path.with_suffix(TOKENS_SUFFIX).exists()]

    def _make_room(self, size_bytes: int) -> None:
        paths = self._by_age()
        excess = sum(map(self._size, paths)) + size_bytes - self._bytes_max
        for path in paths:
            if excess <= 0:
                return
            excess -= self._size(path)
            self._remove(path)

    def _size(self, path: Path) -> int:
        tokens = path.with_suffix(TOKENS_SUFFIX)
        return path.stat().st_size + (tokens.stat().st_size if tokens.exists() else 0)

    def _remove(self, path: Path) -> None:
        path.with_suffix(TOKENS_SUFFIX).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _tokens_of(path: Path) -> Sequence[int]:
    tokens = array("i")
    tokens.frombytes(path.with_suffix(TOKENS_SUFFIX).read_bytes())
    return tokens


def _common_count(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
