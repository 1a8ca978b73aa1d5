"""Write the tiny models: the official file formats, random weights, seconds of work.

    sam-audio-tiny/       config.json and checkpoint.pt with the official keys
    t5-tiny/              the text encoder beside it
    whisper-tiny-random/  a CTranslate2 Whisper folder with its tokenizer
    aligner-tiny/         a wav2vec2 CTC folder
    llm-tiny.gguf         a llama with a chat template

`python -m coscheduler.demo.models FOLDER` writes them. Only the standard library is imported until
something must be written: the scripts ask `is_current` on every call.
"""

import fcntl
import hashlib
import sys
import tempfile
from pathlib import Path

VERSION_FILE = "VERSION"


def version() -> str:
    """Identity of what would be written: a SHA-256 over the sources of the writers, hex."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve()
    for source in (here, *sorted(here.parent.glob("tiny_*.py"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def is_current(folder: Path) -> bool:
    """Whether `folder` holds the models of this version."""
    try:
        return (folder / VERSION_FILE).read_text(encoding="ascii") == version()
    except OSError:
        return False


def write_all(folder: Path, seed: int = 0) -> None:
    """Write the models into `folder`, all or nothing; return at once where they are current.

    Calls in several processes wait for each other. The same seed gives the same bytes. A folder of
    another version is replaced as a whole; processes that have its files open keep them.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(folder):
            _write_and_swap(folder, seed)


def _write_and_swap(folder: Path, seed: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        _write(new, seed)
        (new / VERSION_FILE).write_text(version(), encoding="ascii")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)


def _write(folder: Path, seed: int) -> None:
    from coscheduler.demo import tiny_aligner, tiny_llm, tiny_sam_audio, tiny_whisper

    tiny_sam_audio.write(folder / "sam-audio-tiny", folder / "t5-tiny", seed)
    tiny_whisper.write(folder / "whisper-tiny-random", seed)
    tiny_aligner.write(folder / "aligner-tiny", seed)
    tiny_llm.write(folder / "llm-tiny.gguf", seed)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
