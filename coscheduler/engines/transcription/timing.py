"""Rough times of loading and running, for the planner's order and for estimates of the end."""

from coscheduler.config import DeviceSettings
from coscheduler.engines.transcription.checkpoint import WhisperModel
from coscheduler.engines.transcription.footprint import WINDOW_SECONDS

TOKENS_PER_WINDOW = 100
READ_BYTES_PER_MS = 500_000
# A PCIe 3.0 link with 16 lanes from pageable memory; on the CPU the file is read again.
MOVED_BYTES_PER_MS = {"cpu": READ_BYTES_PER_MS, "cuda": 6_000_000}
FLOPS_PER_MS = {"cpu": 15_000_000, "cuda": 20_000_000_000}  # the CPU's: of each thread
INT8_SPEED = 1.5
# Detection and alignment of one second, and what a batch costs beside its windows.
FIXED_MS_PER_SECOND = {"cpu": 40, "cuda": 4}
BATCH_OVERHEAD = {"cpu": 0.05, "cuda": 1.0}
SLICE_MS_MIN = 250
CONTENTION = 4  # a slice may take this much longer than on an idle machine


def load_ms(model: WhisperModel, other_bytes: int = 0) -> int:
    """Reading and converting the weights, and those of the other models that are held."""
    return 500 + (model.stored_bytes + other_bytes) // READ_BYTES_PER_MS


def moves_ms(size_bytes: int, device: DeviceSettings) -> int:
    """Bringing so many bytes to the device within a stage: from RAM, on the CPU from a file."""
    return -(-size_bytes // MOVED_BYTES_PER_MS[device.device])


def window_ms(
    model: WhisperModel, device: DeviceSettings, compute_type: str, beam_size: int, batch_size: int
) -> int:
    """One window of text within a full batch, ms."""
    rate: float = FLOPS_PER_MS[device.device]
    if device.device == "cpu":
        rate *= device.threads
    if compute_type.startswith("int8"):
        rate *= INT8_SPEED
    overhead = 1 + BATCH_OVERHEAD[device.device] / batch_size
    return 1 + int(_window_flops(model, beam_size) * overhead / rate)


def run_ms_per_second(window: int, device: DeviceSettings) -> int:
    """All phases of one second of audio, where a window of text takes `window` ms."""
    return FIXED_MS_PER_SECOND[device.device] + -(-window // WINDOW_SECONDS)


def slice_ms_max(window: int, batch_size: int, device: DeviceSettings) -> int:
    """A batch of text, or the alignment of one window, on a machine that is busy otherwise."""
    aligned = WINDOW_SECONDS * FIXED_MS_PER_SECOND[device.device]
    return max(SLICE_MS_MIN, CONTENTION * max(window * batch_size, aligned))


def _window_flops(model: WhisperModel, beam_size: int) -> int:
    """Two for each multiplication with a weight, and the encoder's attention."""
    width, positions = model.hidden_dim, model.audio_position_count
    encoder = model.encoder_layer_count * positions * (24 * width + 4 * positions) * width
    decoder = model.decoder_layer_count * 28 * width + 2 * model.vocabulary_count
    return encoder + TOKENS_PER_WINDOW * beam_size * decoder * width
