"""Speech detection of the next recording, in a thread beside the text of the current one.

CTranslate2 lets go of the interpreter while it computes, so where a core is idle, or the text is
made on a card, decoding and detection cost no time of their own. What is found is kept where an
interrupted attempt would leave it (`kept.py`): the run that follows goes on from there.
"""

import logging
import threading
from collections.abc import Generator
from typing import Any

from coscheduler.errors import CoschedulerError

log = logging.getLogger(__name__)


class Ahead:
    """Work that may be begun once, and ended at any time between two of its steps."""

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps = steps
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it after the step at hand; nothing of it runs any more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._steps.close()

    def _work(self) -> None:
        """What goes wrong here goes wrong again in the run itself, which can tell it."""
        try:
            while not self._ended.is_set():
                next(self._steps)
        except StopIteration:
            return
        except (CoschedulerError, OSError, RuntimeError, MemoryError) as error:
            log.info("nothing was detected ahead: %s", error)
