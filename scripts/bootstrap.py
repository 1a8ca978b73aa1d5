"""Make `.venv` and the tiny models, or find in a fraction of a second that they are in place.

    bootstrap.py --can-host   exit 0 and print this interpreter's path when it may make a `.venv`
    bootstrap.py --ready      exit 0 when everything is in place; takes no lock, starts nothing
    bootstrap.py              put in place what is missing, one call at a time

Standard library only: it runs before anything is installed. All that it prints goes to stderr.
What an earlier call left behind, also one that was killed half way, is told by two files in
`.venv`: the stamp, written last, says what was installed; the marker, written first, says that the
installation was not finished.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV_INSTALL = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON)]
STAMP = VENV / "coscheduler-installed.json"
MARKER = VENV / "coscheduler-installing"
LOCK = ROOT / ".demo" / "bootstrap.lock"
MODELS = ROOT / ".demo" / "models"
REQUIREMENTS = ROOT / "requirements"

VERSION_MIN, VERSION_MAX = (3, 11), (3, 13)
HEARTBEAT_S = 30.0
DISK_FREE_BYTES_MIN = 8 * 1024**3

# Portable: the compiled library also runs on another processor that shares this cache.
LLAMA_CMAKE = ("GGML_NATIVE=OFF", "LLAVA_BUILD=OFF")


def say(text: str) -> None:
    """One line to stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def can_host() -> bool:
    """Whether this interpreter can make the environment; Debian splits `ensurepip` off."""
    modules = ("venv", "ensurepip", "ssl", "sqlite3", "ctypes")
    version_fits = VERSION_MIN <= sys.version_info[:2] <= VERSION_MAX
    return version_fits and all(importlib.util.find_spec(name) for name in modules)


def host_python() -> str:
    """The interpreter below an activated environment, which may be the one to be replaced."""
    return str(getattr(sys, "_base_executable", sys.executable))


def wanted(python_version: str) -> dict[str, str]:
    """What the stamp holds when this checkout is installed; `python_version` is such as "3.12"."""
    digest = hashlib.sha256()
    for path in (*sorted(REQUIREMENTS.glob("*.txt")), ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return {"root": str(ROOT), "python": python_version, "inputs": digest.hexdigest()}


def read_stamp() -> dict[str, str]:
    """The stamp, or an empty dict where there is none that can be read."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def venv_version() -> str:
    """The version of the Python in `.venv` ("3.12"), "" when there is none or it does not run."""
    if not PYTHON.exists():
        return ""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return output_of([str(PYTHON), "-I", "-S", "-c", code]).strip()


def installed(python_version: str) -> bool:
    """Whether `.venv` holds what this checkout asks for."""
    return not MARKER.exists() and read_stamp() == wanted(python_version)


def models_current() -> bool:
    """Whether the tiny models are those that this checkout would write."""
    sys.path.insert(0, str(ROOT))
    from coscheduler.demo import models

    return models.is_current(MODELS)


def usable(python_version: str) -> bool:
    """Whether `.venv` may be installed into as it is, rather than be made again."""
    known = {f"{major}.{minor}" for major, minor in ((3, 11), (3, 12), (3, 13))}
    return (
        python_version in known
        and not MARKER.exists()
        and (VENV / "bin" / "pip").exists()
        and read_stamp().get("root", str(ROOT)) == str(ROOT)
    )


@contextlib.contextmanager
def only_one() -> Iterator[int]:
    """Hold the lock; yields its descriptor.

    The commands below inherit it, so that a call which was killed keeps others out until what it
    had started has ended.
    """
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("coscheduler: another call is installing; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run(command: list[str], doing: str, lock: int) -> None:
    """Run a long step. Raises SystemExit with a sentence when it fails."""
    code = attend(command, doing, lock, sys.stderr)
    if code != 0:
        raise SystemExit(f"coscheduler: {doing} failed (exit code {code}); its words are above")


def attend(command: list[str], doing: str, lock: int, output: int | TextIO) -> int:
    """Run a step, with a line every 30 s where no terminal shows its own progress.

    Its stdout and stderr go to `output`; returns its exit code.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=output, stderr=output, pass_fds=(lock,)
    )
    started_s = time.monotonic()
    while True:
        try:
            return process.wait(timeout=HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            if not sys.stderr.isatty():
                say(f"coscheduler:   still {doing}, {time.monotonic() - started_s:.0f} s")


def environment() -> dict[str, str]:
    """The caller's environment, with patience for slow lines and pip's index also for uv."""
    env = {"UV_HTTP_TIMEOUT": "180", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | dict(os.environ)
    index = env.get("PIP_INDEX_URL") or pip_index()
    if index and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & env.keys():
        env["UV_DEFAULT_INDEX"] = index
    return env


def pip_index() -> str:
    """The index that pip is configured with on this machine, "" for its default."""
    return output_of([str(PYTHON), "-m", "pip", "config", "get", "global.index-url"]).strip()


def llama_settings() -> list[str]:
    """The cmake definitions to compile llama.cpp with: for the cards here, else for the CPU."""
    cards = card_architectures()
    if not cards:
        return list(LLAMA_CMAKE)
    lacking = what_nvcc_lacks(cards)
    if lacking:
        say(f"coscheduler: llama.cpp is compiled for the CPU only: {lacking}")
        return list(LLAMA_CMAKE)
    return [*LLAMA_CMAKE, "GGML_CUDA=ON", f"CMAKE_CUDA_ARCHITECTURES={';'.join(cards)}"]


def card_architectures() -> list[str]:
    """The NVIDIA cards' compute capabilities as cmake writes them (["86"]), [] without a driver."""
    answer = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    return sorted({line.strip().replace(".", "") for line in answer.splitlines() if "." in line})


def what_nvcc_lacks(architectures: list[str]) -> str:
    """Why nvcc cannot compile for these cards, "" when it can."""
    known = output_of(["nvcc", "--list-gpu-arch"]).split()
    if not known:
        return "no nvcc (the CUDA toolkit) on the PATH"
    strangers = [entry for entry in architectures if f"compute_{entry}" not in known]
    if strangers:
        return f"this nvcc does not know compute capability {', '.join(strangers)}"
    if not output_of(["nvcc", "-E", "-x", "cu", "-"], stdin="#include <cublas_v2.h>\n"):
        return "the CUDA toolkit has no cublas_v2.h"
    return ""


def output_of(command: list[str], stdin: str = "") -> str:
    """What a command prints, "" when it fails or does not exist."""
    try:
        answer = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout


def make_venv(lock: int) -> None:
    """Make `.venv` afresh, the marker in it from its first moment."""
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    MARKER.touch()
    run([host_python(), "-m", "venv", str(VENV)], "making .venv", lock)


def install(lock: int) -> None:
    """Everything that `requirements/` pins, and this checkout itself, into `.venv`."""
    MARKER.touch()
    STAMP.unlink(missing_ok=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    run([*pip, "-r", str(REQUIREMENTS / "bootstrap.txt")], "installing uv", lock)
    install_libraries(lock)
    itself = ["--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    run([*UV_INSTALL, *itself], "installing coscheduler", lock)
    finish()


def install_libraries(lock: int) -> None:
    """From uv's cache alone where it holds everything, else with the network.

    Offline first, because only then does uv take a compiled llama.cpp from its cache also where the
    index forbids to keep the source: another checkout on the same machine need not compile again.
    """
    command = [*UV_INSTALL, "--require-hashes", "-r", str(REQUIREMENTS / "all.txt")]
    command += ["--build-constraints", str(REQUIREMENTS / "build.txt")]
    for entry in llama_settings():
        command += ["--config-settings-package", f"llama-cpp-python:cmake.define.{entry}"]
    say("coscheduler: installing the engines' libraries, 7 GB; first from uv's cache")
    if attend([*command, "--offline"], "looking there", lock, subprocess.DEVNULL) == 0:
        return
    say(
        "coscheduler: not all is there: 3 GB to download and llama.cpp to compile, 5 to 10 min\n"
        "coscheduler: on two cores; uv keeps both for the next checkout"
    )
    run(command, "installing libraries", lock)


def finish() -> None:
    """Write the stamp, then take the marker away: in this order a crash costs only a repetition."""
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted(venv_version())), encoding="utf-8")
    temporary.replace(STAMP)
    MARKER.unlink()


def write_models(lock: int) -> None:
    """The tiny models, below `.demo/models`."""
    say("coscheduler: writing the tiny models (some 20 s)")
    run([str(PYTHON), "-m", "coscheduler.demo.models", str(MODELS)], "writing models", lock)


def put_in_place() -> None:
    """All of it; a call that had to wait for another usually finds everything done."""
    started_s = time.monotonic()
    with only_one() as lock:
        put_venv_in_place(lock)
        if not models_current():
            write_models(lock)
    say(f"coscheduler: everything is in place after {time.monotonic() - started_s:.0f} s")


def put_venv_in_place(lock: int) -> None:
    """`.venv` with what this checkout asks for; what cannot be kept of it is made again."""
    version = venv_version()
    if installed(version):
        return
    check_disk()
    if not usable(version):
        say(f"coscheduler: making {VENV} with {host_python()}")
        make_venv(lock)
    install(lock)


def check_disk() -> None:
    """A full disk in the middle of an installation is the worse message."""
    free_bytes = shutil.disk_usage(ROOT).free
    if not VENV.exists() and free_bytes < DISK_FREE_BYTES_MIN:
        raise SystemExit(
            f"coscheduler: {ROOT} has {free_bytes / 1024**3:.1f} GiB free; installing takes "
            f"{DISK_FREE_BYTES_MIN / 1024**3:.0f} GiB"
        )


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    if arguments == ["--can-host"]:
        print(host_python())
        return 0 if can_host() else 1
    if arguments == ["--ready"]:
        ready = installed(f"{sys.version_info[0]}.{sys.version_info[1]}") and models_current()
        return 0 if ready else 1
    try:
        put_in_place()
    except KeyboardInterrupt:
        say("coscheduler: interrupted; the next call makes good what is half done")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
