"""The scripts: what they find in place, what they repair, what they ask of the machine."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from coscheduler.demo import models

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`scripts/bootstrap.py` over an empty checkout below `tmp_path`."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPTS / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("VENV", "PYTHON", "STAMP", "MARKER", "LOCK", "MODELS", "REQUIREMENTS"):
        moved = tmp_path / getattr(module, name).relative_to(ROOT)
        monkeypatch.setattr(module, name, moved)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "all.txt").write_text("torch==2.8.0\n")
    monkeypatch.setattr(module, "models_current", lambda: True)
    return module


@pytest.fixture
def steps(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the bootstrap does, in words, instead of doing it; a `.venv` appears when it is made."""
    done: list[str] = []

    def record(command: list[str], doing: str, lock: int, output: object) -> int:
        done.append(doing)
        if doing == "making .venv":
            (bootstrap.VENV / "bin").mkdir()
            (bootstrap.VENV / "bin" / "pip").touch()
            bootstrap.PYTHON.symlink_to(sys.executable)
        return 1 if "--offline" in command else 0

    monkeypatch.setattr(bootstrap, "attend", record)
    return done


ALL_STEPS = [
    "making .venv", "installing uv", "looking there", "installing libraries",
    "installing coscheduler",
]  # fmt: skip


def program(folder: Path, name: str, body: str) -> None:
    """An executable shell script of that name."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_second_call_does_nothing(bootstrap: ModuleType, steps: list[str]) -> None:
    bootstrap.put_in_place()
    assert steps == ALL_STEPS
    bootstrap.put_in_place()
    assert steps == ALL_STEPS


def test_a_full_cache_is_enough(
    bootstrap: ModuleType, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bootstrap.attend

    def all_cached(command: list[str], doing: str, lock: int, output: object) -> int:
        record(command, doing, lock, output)
        return 0

    monkeypatch.setattr(bootstrap, "attend", all_cached)
    bootstrap.put_in_place()
    assert steps == [step for step in ALL_STEPS if step != "installing libraries"]


def test_a_half_made_environment_is_made_again(bootstrap: ModuleType, steps: list[str]) -> None:
    bootstrap.put_in_place()
    bootstrap.MARKER.touch()  # as a killed installation leaves it
    leftover = bootstrap.VENV / "leftover"
    leftover.touch()
    bootstrap.put_in_place()
    assert steps == ALL_STEPS * 2
    assert not leftover.exists() and not bootstrap.MARKER.exists()


def test_a_killed_step_leaves_the_marker(
    bootstrap: ModuleType, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bootstrap.attend

    def fail_at_libraries(command: list[str], doing: str, lock: int, output: object) -> int:
        record(command, doing, lock, output)
        return 2 if doing in {"looking there", "installing libraries"} else 0

    monkeypatch.setattr(bootstrap, "attend", fail_at_libraries)
    with pytest.raises(SystemExit, match="installing libraries failed"):
        bootstrap.put_in_place()
    assert bootstrap.MARKER.exists() and not bootstrap.STAMP.exists()


def test_new_requirements_are_installed_into_what_is_there(
    bootstrap: ModuleType, steps: list[str]
) -> None:
    bootstrap.put_in_place()
    (bootstrap.REQUIREMENTS / "all.txt").write_text("torch==2.9.0\n")
    bootstrap.put_in_place()
    assert steps == [*ALL_STEPS, *ALL_STEPS[1:]]


def test_a_moved_checkout_gets_an_environment_of_its_own(
    bootstrap: ModuleType, steps: list[str]
) -> None:
    bootstrap.put_in_place()
    stamp = json.loads(bootstrap.STAMP.read_text())
    bootstrap.STAMP.write_text(json.dumps(stamp | {"root": "/elsewhere"}))
    bootstrap.put_in_place()
    assert steps == ALL_STEPS * 2


def test_a_python_that_is_gone_is_replaced(bootstrap: ModuleType, steps: list[str]) -> None:
    bootstrap.put_in_place()
    bootstrap.PYTHON.unlink()
    bootstrap.PYTHON.symlink_to("/nonexistent/python3.11")
    bootstrap.put_in_place()
    assert steps == ALL_STEPS * 2


def test_a_damaged_stamp_is_no_stamp(bootstrap: ModuleType, steps: list[str]) -> None:
    bootstrap.put_in_place()
    bootstrap.STAMP.write_text("{")
    bootstrap.put_in_place()
    assert steps == [*ALL_STEPS, *ALL_STEPS[1:]]


def test_too_little_disk_is_said_before_anything_is_made(
    bootstrap: ModuleType, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "DISK_FREE_BYTES_MIN", 2**60)
    with pytest.raises(SystemExit, match="GiB free"):
        bootstrap.put_in_place()
    assert steps == [] and not bootstrap.VENV.exists()


def test_the_lock_is_inherited_by_what_was_started(bootstrap: ModuleType) -> None:
    with bootstrap.only_one() as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with bootstrap.LOCK.open("w") as again, pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.kill()
        child.wait()
    with bootstrap.LOCK.open("w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_failing_step_ends_with_a_sentence(bootstrap: ModuleType) -> None:
    with (
        bootstrap.only_one() as lock,
        pytest.raises(SystemExit, match=r"compiling failed \(exit code 3\)"),
    ):
        bootstrap.run(["sh", "-c", "exit 3"], "compiling", lock)


def test_long_steps_show_that_they_live(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "HEARTBEAT_S", 0.01)
    fifo = bootstrap.ROOT / "fifo"
    os.mkfifo(fifo)
    spoken: list[str] = []

    def say(text: str) -> None:
        spoken.append(text)
        if len(spoken) == 1:
            fifo.write_text("go on\n")

    monkeypatch.setattr(bootstrap, "say", say)
    with bootstrap.only_one() as lock:
        bootstrap.run(["sh", "-c", f"cat {fifo}"], "compiling", lock)
    assert "still compiling" in spoken[0]
    assert "go on" in capfd.readouterr().err  # never on stdout: it may carry a JSON object


NVIDIA_SMI = "printf '8.6\\n8.6\\n'"
NVCC = 'case "$1" in --list-gpu-arch) echo compute_80; echo compute_86;; *) echo header;; esac'


@pytest.mark.parametrize(
    ("nvidia_smi", "nvcc", "cuda", "said"),
    [
        (None, NVCC, False, ""),  # a toolkit without a card
        ("exit 9", NVCC, False, ""),  # a driver that does not answer
        (NVIDIA_SMI, None, False, "no nvcc"),
        (NVIDIA_SMI, "echo compute_80", False, "compute capability 86"),
        (NVIDIA_SMI, 'test "$1" = --list-gpu-arch && echo compute_86', False, "cublas_v2.h"),
        (NVIDIA_SMI, NVCC, True, ""),
    ],
)
def test_llama_cpp_is_compiled_for_what_is_there(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], nvidia_smi: str | None, nvcc: str | None, cuda: bool,
    said: str,
) -> None:  # fmt: skip
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in (("nvidia-smi", nvidia_smi), ("nvcc", nvcc)):
        if body is not None:
            program(tools, name, body)
    monkeypatch.setenv("PATH", str(tools))
    settings = bootstrap.llama_settings()
    assert ("GGML_CUDA=ON" in settings) is cuda
    assert ("CMAKE_CUDA_ARCHITECTURES=86" in settings) is cuda
    assert "GGML_NATIVE=OFF" in settings and "LLAVA_BUILD=OFF" in settings
    assert said in capsys.readouterr().err


def find_python(path: str) -> subprocess.CompletedProcess[str]:
    """Run the shell function that chooses a Python, with `path` as the whole PATH."""
    text = (SCRIPTS / "_bootstrap.sh").read_text()
    function = text[text.index("find_python() {") : text.index("bootstrap() {")]
    code = f"root='{ROOT}'\n{function}\nfind_python"
    return subprocess.run(
        ["/bin/bash", "-c", code], env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_a_shim_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    for name in ("python3.13", "python3.12"):
        program(shims, name, "echo 'command not found' >&2; exit 127")
    program(shims, "python3.11", f'exec "{sys.executable}" "$@"')
    answer = find_python(f"{shims}:/bin")
    assert answer.returncode == 0, answer.stderr
    found = subprocess.run(
        [answer.stdout.strip(), "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("Python 3.1")


def test_without_a_python_the_message_says_what_to_install(tmp_path: Path) -> None:
    program(tmp_path / "shims", "python3", "exit 1")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cat").symlink_to("/bin/cat")
    answer = find_python(f"{tmp_path / 'shims'}:{tools}")
    assert answer.returncode == 1
    assert "3.11, 3.12 or 3.13" in answer.stderr and "apt install" in answer.stderr


def test_every_script_is_executable_and_says_what_it_is() -> None:
    for path in sorted(SCRIPTS.iterdir()):
        if path.suffix or path.is_dir():
            continue
        assert os.access(path, os.X_OK), path
        lines = path.read_text().splitlines()
        assert lines[0].startswith("#!") and lines[1][:1] in {"#", '"'}, path


def test_warm_start_needs_no_tool_and_no_network() -> None:
    """With a PATH of a few coreutils there is no uv, pip, compiler or Python to call."""
    if "COSCHEDULER_READY" not in os.environ:
        pytest.skip("not started by scripts/test, which puts everything in place first")
    ready = [str(ROOT / ".venv/bin/python"), "-I", "-S", f"{SCRIPTS}/bootstrap.py", "--ready"]
    answer = subprocess.run(ready, env={"PATH": ""}, timeout=3, check=False)
    assert answer.returncode == 0


Writer = Callable[..., None]


@pytest.fixture
def quick_writers(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Writers of a file each, recorded, in place of those that make real models."""
    written: list[Path] = []

    def write(folder: Path, seed: int) -> None:
        written.append(folder)
        (folder / "model").write_text(f"seed {seed}")

    monkeypatch.setattr(models, "_write", write)
    return written


def test_models_are_written_once(tmp_path: Path, quick_writers: list[Path]) -> None:
    folder = tmp_path / "deep" / "models"
    models.write_all(folder)
    models.write_all(folder)
    assert len(quick_writers) == 1 and models.is_current(folder)


def test_models_of_another_version_are_replaced_as_a_whole(
    tmp_path: Path, quick_writers: list[Path]
) -> None:
    folder = tmp_path / "models"
    models.write_all(folder)
    (folder / models.VERSION_FILE).write_text("older")
    (folder / "stray").touch()
    models.write_all(folder, seed=7)
    assert (folder / "model").read_text() == "seed 7"
    assert not (folder / "stray").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".models.lock", "models"]


def test_a_writer_that_fails_leaves_the_old_models(
    tmp_path: Path, quick_writers: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    models.write_all(folder)
    (folder / models.VERSION_FILE).write_text("older")

    def fail(scratch: Path, seed: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(models, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        models.write_all(folder)
    assert (folder / "model").exists() and not models.is_current(folder)


def test_demo_models_are_all_there(tiny_models: Path) -> None:
    names = {path.name for path in tiny_models.iterdir()}
    assert names == {
        "sam-audio-tiny", "t5-tiny", "whisper-tiny-random", "aligner-tiny", "llm-tiny.gguf",
        models.VERSION_FILE,
    }  # fmt: skip
    assert (tiny_models / "sam-audio-tiny" / "checkpoint.pt").stat().st_size > 10_000
