"""Importing WhisperX and its kin late, quietly and offline.

They are imported only by `start()`, in the engine's own process: the import leaves threads behind,
and a process with threads must not be forked.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from coscheduler.engines.streaming import heap

# Telemetry of pyannote is on unless this is set before its import; nothing may reach for a hub.
# oneDNN keeps a compiled kernel for every length of input that it has met, 1024 of them unless told
# otherwise: every aligned segment has a length of its own, and about 1 MiB would stay of each.
# MKL (CTranslate2 uses it on Intel's processors) keeps freed buffers; and there CTranslate2 would
# keep a packed copy of most weights beside them: int8 would take nearly three times its bytes.
_ENVIRONMENT = {
    "CT2_PACKED_GEMM": "0",
    "MKL_DISABLE_FAST_MM": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_MODULES = (
    "ctranslate2",
    "faster_whisper.tokenizer",
    "faster_whisper.vad",
    "onnxruntime",
    "whisperx.asr",
    "whisperx.alignment",
    "whisperx.diarize",
    "whisperx.utils",
)
# Buffers above the first are mappings of their own, which go when they are freed. What lies below
# it shares the heap, whose holes stay resident.
_MAPPED_BYTES = 256 * 1024
_HEAP_TOP_BYTES = 1024 * 1024
_REUSED_TOP_BYTES = 1024 * 1024 * 1024  # more than any phase leaves there


def import_all(thread_count: int) -> None:
    """Import everything the engine uses; on return no thread of a telemetry exporter is left."""
    os.environ.update(_ENVIRONMENT)
    heap.share_one_arena()
    heap.fix_thresholds(_MAPPED_BYTES, _HEAP_TOP_BYTES)
    _quieten_whisperx()
    with warnings.catch_warnings():
        # Only recordings in files would need torchcodec; this engine hands over samples.
        warnings.filterwarnings("ignore", message=r"\s*torchcodec is not installed correctly")
        for name in _MODULES:
            importlib.import_module(name)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it sets INFO when imported
    _go_offline()
    _stop_telemetry()
    module("torch").set_num_threads(thread_count)


@contextmanager
def reusing(mapped_bytes: int) -> Iterator[None]:
    """Within the block freed buffers below `mapped_bytes` stay in the heap, to be used again;
    afterwards they go back to the system. Fresh pages for every activation took two fifths of the
    time of a small model.
    """
    heap.fix_thresholds(mapped_bytes, _REUSED_TOP_BYTES)
    try:
        yield
    finally:
        heap.fix_thresholds(_MAPPED_BYTES, _HEAP_TOP_BYTES)
        heap.trim()


def module(name: str) -> ModuleType:
    """A module that `import_all` has imported."""
    return importlib.import_module(name)


def _quieten_whisperx() -> None:
    """Keep WhisperX's log off stdout: a handler of our own leaves it to the log of the process."""
    whisperx = logging.getLogger("whisperx")
    whisperx.addHandler(logging.NullHandler())
    whisperx.setLevel(logging.ERROR)


def _go_offline() -> None:
    """The hub's library reads its environment when first imported, which may be long past."""
    module("huggingface_hub.constants").__dict__["HF_HUB_OFFLINE"] = True
    module("transformers.utils.hub").__dict__["_is_offline_mode"] = True


def _stop_telemetry() -> None:
    """End the exporter's thread, which pyannote starts even with telemetry off."""
    module("pyannote.audio.telemetry.metrics").provider.shutdown()
