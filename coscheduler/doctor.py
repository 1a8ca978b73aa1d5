"""What this machine has, what of a config will run on it, and what to do about the rest.

Every question is one function that answers with findings and fails in none of them: whatever is
wrong with the machine is what is to be told. Engines are described and libraries are asked in
processes of their own; nothing is loaded into a device, nothing is downloaded.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from coscheduler import config
from coscheduler.config import DeviceSettings, Settings
from coscheduler.core.model import EngineName
from coscheduler.engines import describe
from coscheduler.errors import CoschedulerError
from coscheduler.models import local, needs
from coscheduler.models.needs import Need
from coscheduler.runtime.meter import ProcessMeter, capacity_bytes, open_meter

PYTHONS = ((3, 11), (3, 14))  # from, and below
PROBE_SECONDS_MAX = 120
MIB, GIB = 1024**2, 1024**3
_REQUIREMENT = re.compile(r"([\w.-]+).*?(?:extra == \W(\w+))?\W*$")
# What says whether a library can compute on a card: it prints something, or nothing.
PROBES = {
    EngineName.SEPARATION: ("torch", "import torch; print(torch.cuda.is_available() or '')"),
    EngineName.TRANSCRIPTION: (
        "ctranslate2",
        "import ctranslate2; print(ctranslate2.get_cuda_device_count() or '')",
    ),
    EngineName.ANALYSIS: (
        "llama_cpp",
        "import llama_cpp; print(llama_cpp.llama_supports_gpu_offload() or '')",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One answer. `ok` False: something will not run until `advice` is followed."""

    what: str
    ok: bool
    found: str
    advice: str = ""


def examine(path: Path | None) -> Iterator[Finding]:
    """All findings, as they come. Without a config: what every engine would need."""
    yield python()
    settings, loaded = _settings(path)
    if loaded is not None:
        yield loaded
    if settings is None:
        return
    device, capacity = card(settings)
    yield device
    yield memory()
    yield disk(settings)
    wanted = _engines(settings) if path else tuple(EngineName)
    for engine in wanted if settings.engines == "real" else ():
        yield libraries(engine)
        if settings.device.device == "cuda":
            yield build(engine)
    if path is None or settings.engines == "fake":
        return
    yield from map(model, needs.of(settings))
    for engine in wanted:
        answer = describe.ask(path.resolve(), engine)
        yield runs(engine, answer, capacity)
        if engine == EngineName.SEPARATION and "error" not in answer:
            yield prepared(settings, answer)


def python() -> Finding:
    """The interpreter and the system."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.release()}"
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1] and platform.system() == "Linux"
    return Finding("system", fits, system, "" if fits else "use Linux and Python 3.11 to 3.13")


def _settings(path: Path | None) -> tuple[Settings | None, Finding | None]:
    if path is None:
        device = DeviceSettings(device="cuda" if _has_card() else "cpu")
        return Settings(device=device), None
    try:
        found = config.load(path)
    except CoschedulerError as error:
        return None, Finding(
            "config", False, error.message, "correct the file; see configs/cpu.toml"
        )
    engines = ", ".join(map(str, _engines(found))) or "no engine"
    return found, Finding("config", True, f"{path}: {engines}, device {found.device.device}")


def _has_card() -> bool:
    try:
        open_meter(DeviceSettings(device="cuda"))
    except CoschedulerError:
        return False
    return True


def _engines(settings: Settings) -> tuple[EngineName, ...]:
    return tuple(name for name in EngineName if getattr(settings, str(name)) is not None)


def card(settings: Settings) -> tuple[Finding, int]:
    """The device whose memory is shared out, and the capacity that it would have now, bytes."""
    try:
        meter = open_meter(settings.device)
    except CoschedulerError as error:
        advice = 'install the driver of the card, or set [device] device = "cpu"'
        return Finding("device", False, error.message, advice), 0
    total, used = meter.device_bytes()
    capacity = capacity_bytes(settings.device, total, used)
    text = f"{meter.device_name}{_driver(settings)}: {_size(total - used)} free of {_size(total)}, "
    text += f"{_size(capacity)} to share out"
    advice = "" if capacity else "close other programs, or lower [device] headroom"
    return Finding("device", capacity > 0, text, advice), capacity


def _driver(settings: Settings) -> str:
    if settings.device.device != "cuda":
        return ""
    import pynvml

    version = pynvml.nvmlSystemGetDriverVersion()
    name = version.decode() if isinstance(version, bytes) else str(version)
    cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    return f", driver {name} (CUDA {cuda // 1000}.{cuda % 1000 // 10})"


def memory() -> Finding:
    """The host's RAM."""
    total, used = ProcessMeter().device_bytes()
    return Finding("RAM", True, f"{_size(total - used)} free of {_size(total)}")


def disk(settings: Settings) -> Finding:
    """Where jobs and results go."""
    folder = next(
        place for place in (settings.data_dir, *settings.data_dir.parents) if place.exists()
    )
    free, least = shutil.disk_usage(folder).free, int(settings.store.disk_free_bytes_min)
    writable = os.access(folder, os.W_OK)
    text = f"{_size(free)} free in {settings.data_dir}{'' if writable else ', not writable'}"
    fits = writable and free >= least
    advice = f"make room (at least {_size(least)}) or set [store] data_dir to another folder"
    return Finding("disk", fits, text, "" if fits else advice)


def libraries(engine: EngineName) -> Finding:
    """The engine's libraries and their versions, as this package asks for them."""
    versions = {name: _version(name) for name in _asked_for(engine)}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    fits = all(versions.values())
    advice = "" if fits else f"pip install 'coscheduler[{engine}]'"
    return Finding(f"{engine} libraries", fits, text, advice)


def _asked_for(engine: EngineName) -> list[str]:
    found = map(_REQUIREMENT.fullmatch, metadata.requires("coscheduler") or ())
    return [match[1] for match in found if match and match[2] == str(engine)]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def build(engine: EngineName) -> Finding:
    """Whether the engine's library can compute on a card."""
    name, program = PROBES[engine]
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, timeout=PROBE_SECONDS_MAX, check=False,
        )  # fmt: skip
        fits = done.returncode == 0 and bool(done.stdout.strip())
    except subprocess.TimeoutExpired:
        fits = False
    text = f"{name} {'computes on the card' if fits else 'does not find a card'}"
    advice = f'install {name} in a build for CUDA, or set [device] device = "cpu"'
    return Finding(f"{engine} on the card", fits, text, "" if fits else advice)


def model(need: Need) -> Finding:
    """Whether a model's files are there."""
    what = f"{need.engine} {need.role}"
    try:
        found = local.look(need)
    except CoschedulerError as error:
        return Finding(what, False, f"{need.name}: {error.message}", "install what is missing")
    if found.is_complete:
        return Finding(what, True, f"{need.name}, {_size(found.size_bytes)}")
    lacks = f"lacks {', '.join(found.missing)}" if found.folder else "is not there"
    advice = "put the files there, or name a repository and pull it"
    if need.repository is not None:
        advice = "coscheduler models pull --config FILE"
    return Finding(what, False, f"{need.name} {lacks}", advice)


def runs(engine: EngineName, answer: dict[str, Any], capacity: int) -> Finding:
    """Whether the engine would run in what is free now, and how."""
    if "error" in answer:
        error = answer["error"]
        advice = "see the findings about its files and libraries"
        return Finding(f"{engine} runs", False, f"{error['message']} [{error['reason']}]", advice)
    options = answer["options"]
    peaks = [answer["context_bytes"] + option["peak_bytes"] for option in options]
    fitting = [pair for pair in zip(options, peaks, strict=True) if pair[1] <= capacity]
    if not fitting:
        text = f"needs {_size(min(peaks))} or more for ten minutes of audio"
        advice = "free memory, raise memory_cap, or configure a smaller model or a coarser type"
        return Finding(f"{engine} runs", False, f"{text}, {_size(capacity)} are there", advice)
    option, peak = min(fitting, key=lambda pair: pair[0]["quality_tier"])
    text = f"{option['name']}, quality tier {option['quality_tier']}, {_size(peak)} of "
    text += f"{_size(capacity)}, {_size(option['host_bytes'])} of the host"
    return Finding(f"{engine} runs", True, text)


def prepared(settings: Settings, answer: dict[str, Any]) -> Finding:
    """Whether the disk has room for the weights as SAM-Audio's first load writes them."""
    section = settings.separation
    folder = (section and section.prepared_dir) or settings.data_dir / "prepared"
    kept = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    needed = max(0, min(option["host_bytes"] for option in answer["options"]) - kept)
    free = shutil.disk_usage(_existing(folder)).free
    text = f"{_size(kept)} in {folder}, {_size(needed)} to be written, {_size(free)} free"
    advice = "make room, or set [separation] prepared_dir to another disk"
    return Finding("prepared weights", needed <= free, text, "" if needed <= free else advice)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _size(size_bytes: int) -> str:
    """Bytes for people: 1.25 GiB, 12.5 MiB, 300 KiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.3g} {name}"
    return f"{size_bytes >> 10} KiB"
