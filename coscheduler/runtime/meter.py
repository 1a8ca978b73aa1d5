"""Measured memory, read from outside the measured process.

On the CPU "device memory" is the anonymous memory of an engine process: RssAnon + VmSwap of
/proc/PID/status, minus what it was right after the fork (shared with the fork server until written).
Mapped files (prepared weights) are page cache and do not count: they are the host's side.
"""

from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """RssAnon + VmSwap of a process, bytes. Raises ProcessLookupError when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {pid} is gone") from None
    kib = {"RssAnon": 0, "VmSwap": 0}
    for row in text.splitlines():
        key, _, value = row.partition(":")
        if key in kib:
            kib[key] = int(value.split()[0])
    return sum(kib.values()) * 1024
