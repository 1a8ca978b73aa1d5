"""Who watches a job. Bounded: so many watchers, and for each only the newest snapshot."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from coscheduler.errors import Exhausted
from coscheduler.runtime.api import JobSnapshot


class Watchers:
    """Mailboxes with room for one snapshot each; a slow reader misses old ones, never the last."""

    def __init__(self, watchers_max: int) -> None:
        self._watchers_max = watchers_max
        self._mailboxes: dict[str, set[_Mailbox]] = {}

    @property
    def count(self) -> int:
        """Open watches."""
        return sum(len(boxes) for boxes in self._mailboxes.values())

    def publish(self, snapshot: JobSnapshot) -> None:
        """Give every watcher of the job this snapshot in place of what it has not read yet."""
        for mailbox in self._mailboxes.get(snapshot.job.name, ()):
            mailbox.put(snapshot)

    async def watch(
        self, name: str, read: Callable[[], Awaitable[JobSnapshot]]
    ) -> AsyncGenerator[JobSnapshot, None]:
        """What `read` gives, then what is published, until a final one. Raises Exhausted.

        The mailbox is open before `read` looks: nothing can happen unseen in between.
        """
        mailbox = self._subscribe(name)
        try:
            snapshot = await read()
            yield snapshot
            while not snapshot.job.state.is_final:
                snapshot = await mailbox.get()
                yield snapshot
        finally:
            self._unsubscribe(name, mailbox)

    def _subscribe(self, name: str) -> "_Mailbox":
        if self.count >= self._watchers_max:
            raise Exhausted(
                "TOO_MANY_WATCHERS",
                f"{self.count} watches are open and {self._watchers_max} are allowed; close some",
                watchers_max=self._watchers_max,
                retry_ms=1000,
            )
        mailbox = _Mailbox()
        self._mailboxes.setdefault(name, set()).add(mailbox)
        return mailbox

    def _unsubscribe(self, name: str, mailbox: "_Mailbox") -> None:
        boxes = self._mailboxes[name]
        boxes.remove(mailbox)
        if not boxes:
            del self._mailboxes[name]


class _Mailbox:
    def __init__(self) -> None:
        self._full = asyncio.Event()
        self._snapshot: JobSnapshot | None = None

    def put(self, snapshot: JobSnapshot) -> None:
        self._snapshot = snapshot
        self._full.set()

    async def get(self) -> JobSnapshot:
        await self._full.wait()
        self._full.clear()
        assert self._snapshot is not None
        return self._snapshot
