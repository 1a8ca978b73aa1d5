"""TOML -> frozen Settings. Every limit of the product is here, once, with its unit in its name.

Sizes are written as "1.25 GiB" or as a plain number of bytes; paths are relative to the config
file. An engine whose section is missing is simply not configured; jobs that need it are refused.
"""

import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from coscheduler.errors import InvalidInput
from coscheduler.shapes import AnalysisShape, SeparationShape, TranscriptionShape

Positive = Annotated[int, Field(gt=0)]
HUB_NAME = re.compile(r"hub:(?:[\w.-]+/)?[\w.-]+(?:/[\w./-]+\.gguf)?(?:@[\w./-]+)?")
HubName = Annotated[str, Field(pattern=r"^hub:([\w.-]+/)?[\w.-]+(@[\w./-]+)?$")]
NonNegative = Annotated[int, Field(ge=0)]
# What becomes infinite in one evaluation of the ODE is not a number in the next one.
FLOAT16_REFUSED = (
    "float16 is refused: values of SAM-Audio can exceed its range (65504), and one infinity spoils "
    "the whole ODE; bfloat16 takes the same bytes"
)
MIB = 1024 * 1024
GIB = 1024 * MIB


def _model_path(path: Path) -> Path:
    if str(path).startswith("hub:") and HUB_NAME.fullmatch(str(path)) is None:
        raise ValueError('a repository is written "hub:owner/name", with "@revision" if need be')
    return path


# A folder or file, or "hub:owner/name[/file.gguf][@revision]": what the local cache has of it.
ModelPath = Annotated[Path, AfterValidator(_model_path)]


def _gguf_path(path: Path) -> Path:
    if str(path).startswith("hub:") and not str(path).partition("@")[0].endswith(".gguf"):
        raise ValueError('name one file of the repository: "hub:owner/name/file.gguf"')
    return path


GgufPath = Annotated[ModelPath, AfterValidator(_gguf_path)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Section):
    """Where the daemon listens and how much a client may ask of it at once."""

    listen: str = ""  # "" = a unix socket below the runtime directory; or "127.0.0.1:PORT"
    message_bytes_max: Positive = 4 * MIB
    chunk_bytes: Positive = 256 * 1024
    keepalive_ms: Positive = 30_000
    drain_ms_max: Positive = 30_000
    watchers_max: Positive = 256


class StoreSettings(_Section):
    """Durable jobs and artifacts."""

    data_dir: Path | None = None  # None = the user's data directory
    artifact_bytes_max: ByteSize = ByteSize(4 * GIB)
    disk_free_bytes_min: ByteSize = ByteSize(256 * MIB)
    journal_bytes_max: ByteSize = ByteSize(16 * MIB)  # of events and decisions; 0: no journal
    recording_ms_min: Positive = 100
    recording_ms_max: Positive = 12 * 3_600_000


class DeviceSettings(_Section):
    """The memory that is shared out. `memory_cap` 0 means: all that the device has."""

    device: Literal["cpu", "cuda"] = "cpu"
    index: NonNegative = 0
    memory_cap: ByteSize = ByteSize(0)
    headroom: ByteSize = ByteSize(256 * MIB)
    compute_slots: Positive = 2
    gpu_processes_max: Positive = 3
    threads: Positive = 2  # per engine, for math libraries on the CPU


class SchedulingSettings(_Section):
    """Classes, ageing, bounds."""

    queue_max: Positive = 256
    attempts_max: Positive = 3
    preempts_max: NonNegative = 8  # times a stage is stopped for others; more if it runs long
    ageing_ms: Positive = 60_000  # one class step is worth this much waiting
    keep_alive_ms: Positive = 300_000
    group_ms_max: NonNegative = (
        10_000  # work for an engine in memory may delay its eviction so long
    )
    resident_ms_min: NonNegative = (
        2_000  # a lower class leaves what a higher one used alone so long
    )
    oom_steps_max: NonNegative = 4  # times a stage may run out of memory and try a smaller option
    oom_memory_ms: Positive = 600_000  # what ran out of memory is taken to need more for so long
    chats_max: Positive = 64  # requests of conversations that wait or are being answered
    chat_join_ms: NonNegative = 10_000  # after its begin a run of conversations takes more so long
    peak_tolerance: ByteSize = ByteSize(16 * MIB)  # measured above predicted: more is learned
    capacity_grow_ms: NonNegative = 5_000  # memory that others gave back must stay free for so long
    release_ms_max: Positive = 5_000
    cancel_ms_max: Positive = 10_000
    start_ms_max: Positive = 120_000
    load_ms_max: Positive = 600_000
    slice_ms_max: Positive = 600_000  # a child silent for longer is ended


class SeparationSettings(_Section):
    """SAM-Audio: a folder with config.json and checkpoint.pt, and a T5 encoder folder.

    Instead of a folder "hub:owner/name" or "hub:owner/name@revision" means what is in the local
    cache of that repository. With model = "auto" the best of `models` that fits is used.
    """

    model: HubName | Literal["auto"] | Path
    models: tuple[HubName | Path, ...] = ()  # best first; for "auto"
    text_encoder: HubName | Path
    precisions: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32",)
    window_ms: Positive = 30_000
    prepared_dir: Path | None = None  # None = below the store
    shape: SeparationShape | None = None  # for plans where the files are not
    pinned_max: ByteSize = ByteSize(4 * GIB)  # of RAM, page-locked for streaming; only on CUDA

    @model_validator(mode="after")
    def _models_for_auto(self) -> "SeparationSettings":
        if (self.model == "auto") != bool(self.models):
            raise ValueError('model = "auto" goes with models = [...], and only with it')
        return self

    @field_validator("precisions", mode="before")
    @classmethod
    def _no_float16(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and "float16" in value:
            raise ValueError(FLOAT16_REFUSED)
        return value


class TranscriptionSettings(_Section):
    """WhisperX: a CTranslate2 Whisper folder, aligners by language, a diarization folder.

    An aligner whose key is a language and more, "en-large", is for jobs that name it. With
    `detect_ahead` the speech of the next recording is found while the text of this one is made,
    which takes memory beside it and saves time where a core is idle or the text is made on a card.
    """

    model: ModelPath
    aligners: dict[str, ModelPath] = {}
    diarizer: ModelPath | None = None  # None = no speakers
    compute_types: tuple[Literal["float32", "float16", "int8", "int8_float16"], ...] = ("float32",)
    batch_sizes: tuple[Positive, ...] = (8, 4, 1)
    beam_size: Positive = 5
    shape: TranscriptionShape | None = None  # for plans where the files are not
    vad_method: Literal["pyannote", "silero"] = "pyannote"
    vad_onset: float = 0.5
    vad_offset: float = 0.363
    chunk_ms: Positive = 30_000
    detect_ahead: bool = False


class AnalysisSettings(_Section):
    """llama.cpp: a GGUF file and the cap on its KV cache.

    Up to `sequences_max` texts share the context: conversations, and the pieces of a long
    transcript, which take `piece_tokens_max` each, or more where the context has room for all. What
    it held of conversations and of the beginnings of templates is kept in `session_dir`, up to
    `session_bytes_max` (0: nothing), until the daemon ends.

    What a context takes is found out by llama.cpp itself, in a process of its own that allocates
    none of it and may take up to `survey_bytes_max` (most of that is the vocabulary).
    """

    model: GgufPath
    kv_cache_max: ByteSize = ByteSize(1280 * MIB)
    n_ctx_max: Positive = 8192
    n_ctx_min: Positive = 2048
    kv_types: tuple[Literal["f16", "q8_0", "q4_0"], ...] = ("f16",)
    n_gpu_layers: int = 999  # more than there are = all; ignored on the CPU
    n_batch: Positive = 512
    use_mmap: bool = False
    shape: AnalysisShape | None = None  # for plans where the files are not
    sequences_max: Annotated[int, Field(ge=1, le=16)] = 4
    piece_tokens_max: Positive = 4096
    session_bytes_max: ByteSize = ByteSize(GIB)
    session_dir: Path | None = None  # None = below the store
    survey_bytes_max: ByteSize = ByteSize(128 * MIB)


class Settings(_Section):
    """The whole config file. `engines = "fake"` swaps every model for one that only takes memory,
    so that policies and clients can be tried without any.
    """

    engines: Literal["real", "fake"] = "real"
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    device: DeviceSettings = DeviceSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    separation: SeparationSettings | None = None
    transcription: TranscriptionSettings | None = None
    analysis: AnalysisSettings | None = None

    @property
    def listen_address(self) -> str:
        """Either `unix:PATH` or `127.0.0.1:PORT`."""
        return self.server.listen or default_address()

    @property
    def data_dir(self) -> Path:
        """The store's folder."""
        return self.store.data_dir or default_data_dir()


def with_whisper(settings: Settings, model: str) -> Settings:
    """The settings with another Whisper, a folder or "hub:owner/name".

    Raises InvalidInput CONFIG_INVALID where nothing is said of transcription.
    """
    if settings.transcription is None:
        raise InvalidInput(
            "CONFIG_INVALID",
            f"the config has no [transcription] section in which {model} could be the model",
            field="transcription",
        )
    raw = settings.transcription.model_dump(exclude={"model", "shape"}) | {"model": model}
    section = parse({"transcription": raw}, Path.cwd()).transcription
    return settings.model_copy(update={"transcription": section})


def default_address() -> str:
    """A unix socket in the user's runtime directory, else in a temp directory of the user's own."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    folder = (
        Path(runtime_dir)
        if runtime_dir
        else Path(tempfile.gettempdir()) / f"coscheduler-{os.getuid()}"
    )
    return f"unix:{folder / 'coscheduler.sock'}"


def default_data_dir() -> Path:
    """Where the store lives unless the config says otherwise (the XDG data directory)."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "coscheduler"


def load(path: Path) -> Settings:
    """Read a config file. Raises InvalidInput CONFIG_MISSING, CONFIG_SYNTAX or CONFIG_INVALID."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(
            "CONFIG_MISSING", f"cannot read config {path}: {error.strerror}", path=path
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("CONFIG_SYNTAX", f"{path} is not TOML: {error}", path=path) from None
    return parse(raw, base_dir=path.resolve().parent)


def parse(raw: dict[str, Any], base_dir: Path) -> Settings:
    """Check a config that is already a dict. Raises InvalidInput CONFIG_INVALID with the field."""
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(
            "CONFIG_INVALID", f"config: {where}: {first['msg']}", field=where
        ) from None
    return _resolve(settings, base_dir)


def _resolve(settings: Settings, base_dir: Path) -> Settings:
    """Make every path absolute (relative to the config file, `~` expanded) and fill in defaults."""
    updates = {
        key: _resolve_section(value, base_dir)
        for key, value in settings
        if isinstance(value, _Section)
    }
    if updates["store"].data_dir is None:
        updates["store"] = updates["store"].model_copy(update={"data_dir": default_data_dir()})
    separation = updates.get("separation")
    if separation is not None and separation.prepared_dir is None:
        prepared_dir = updates["store"].data_dir / "prepared"
        updates["separation"] = separation.model_copy(update={"prepared_dir": prepared_dir})
    analysis = updates.get("analysis")
    if analysis is not None and analysis.session_dir is None:
        session_dir = updates["store"].data_dir / "sessions"
        updates["analysis"] = analysis.model_copy(update={"session_dir": session_dir})
    return settings.model_copy(update=updates)


def _absolute(path: Path, base_dir: Path) -> Path:
    if str(path).startswith("hub:"):
        return path
    return Path(os.path.normpath(base_dir / path.expanduser()))


def _resolve_section(section: Any, base_dir: Path) -> Any:
    changes: dict[str, Any] = {}
    for key, value in section:
        if isinstance(value, Path):
            changes[key] = _absolute(value, base_dir)
        elif isinstance(value, tuple) and any(isinstance(entry, Path) for entry in value):
            changes[key] = tuple(
                _absolute(entry, base_dir) if isinstance(entry, Path) else entry for entry in value
            )
        elif isinstance(value, dict):
            changes[key] = {name: _absolute(path, base_dir) for name, path in value.items()}
    return section.model_copy(update=changes)
