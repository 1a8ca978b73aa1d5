"""What the kernel says of a process' memory. Used from outside (the meter) and inside (slices)."""

from pathlib import Path


def anonymous_bytes(pid: int | str) -> int:
    """RssAnon + VmSwap of a process (a pid or "self"), bytes.

    Raises ProcessLookupError when it is gone.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {pid} is gone") from None
    return kib_sum(text, ("RssAnon", "VmSwap")) * 1024


def kib_sum(text: str, keys: tuple[str, ...]) -> int:
    """Sum of the named rows of a /proc file that counts in kB."""
    rows = (row.partition(":") for row in text.splitlines())
    return sum(int(value.split()[0]) for key, _, value in rows if key in keys)
