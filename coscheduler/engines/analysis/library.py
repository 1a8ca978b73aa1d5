"""The llama.cpp library as a whole: opening it, its one thread, its one log, its GPU.

It is brittle: using anything after it was freed, or from two threads, ends the process. So every
handle has one owner, and `alive` guards each use.
"""

import ctypes
import threading
from typing import Any

import llama_cpp.llama_cpp as api
from llama_cpp import _ggml

from coscheduler.engines.analysis.journal import Journal
from coscheduler.errors import EngineFault

_CONTINUED = 5  # ggml's log level for dots of progress
_GPU_DEVICE = 1  # GGML_BACKEND_DEVICE_TYPE_GPU; 0 is the CPU
_owner = 0  # the thread that opened the library: it knows no locks


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _sink(level: int, text: bytes | None, _user: object) -> None:
    """Get every line of the library, which keeps this address: hence a function of the module."""
    line = (text or b"").decode("utf-8", errors="replace").strip()
    if Journal.current is not None and line and level != _CONTINUED:  # dots of progress
        Journal.current.write(level, line)


def open_library() -> Journal:
    """Take over the log, then initialise the library, which belongs to this thread from now on.

    May be called again.
    """
    global _owner
    _owner = threading.get_ident()
    journal = Journal()
    api.llama_log_set(_sink, ctypes.c_void_p(0))
    api.llama_backend_init()
    return journal


def alive(handle: Any, what: str) -> Any:
    """The handle. Raises RuntimeError when it was closed, or when another thread asks."""
    if threading.get_ident() != _owner:
        raise RuntimeError(f"the {what} belongs to another thread")
    if handle is None:
        raise RuntimeError(f"the {what} is closed")
    return handle


def warm_up_gpu(index: int) -> None:
    """Take the device context of a GPU by asking for its free memory.

    Raises EngineFault GPU_UNSUPPORTED when this build of llama.cpp has no such GPU.
    """
    ggml = _ggml.libggml
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_pointer, size_pointer]
    ggml.ggml_backend_dev_memory.restype = None
    devices = [ggml.ggml_backend_dev_get(number) for number in range(ggml.ggml_backend_dev_count())]
    gpus = [device for device in devices if ggml.ggml_backend_dev_type(device) == _GPU_DEVICE]
    if index >= len(gpus):
        raise EngineFault(
            "GPU_UNSUPPORTED",
            f"this llama.cpp sees {len(gpus)} GPUs and number {index} is configured; "
            "it must be built with CUDA",
            gpu_count=len(gpus),
            index=index,
        )
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(gpus[index], ctypes.byref(free), ctypes.byref(total))
