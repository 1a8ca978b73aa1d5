"""A SAM-Audio folder on disk, and its weights in device memory segment by segment."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from coscheduler.engines.separation import config as config_file
from coscheduler.engines.separation.checkpoint import fingerprint, open_checkpoint
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.layout import FORMAT, plan_segments
from coscheduler.engines.separation.scheme import WATERMARK
from coscheduler.engines.streaming import prepared as prepared_files
from coscheduler.engines.streaming.blocks import Block, load_block
from coscheduler.engines.streaming.order import residency_order
from coscheduler.engines.streaming.prepared import PreparedFile
from coscheduler.engines.streaming.segments import SegmentEntry, lay_out
from coscheduler.engines.streaming.streamer import Streamer

OnBytes = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class ModelFolder:
    """`config.json` + `checkpoint.pt`."""

    folder: Path
    config: ModelConfig

    @property
    def checkpoint_path(self) -> Path:
        """The official file name."""
        return self.folder / "checkpoint.pt"

    def segments(self, dtype: str) -> tuple[SegmentEntry, ...]:
        """Sizes of all segments in a precision, from the checkpoint's table alone.

        Raises EngineFault MODEL_MISSING or MODEL_CORRUPT.
        """
        checkpoint = open_checkpoint(self.checkpoint_path)
        return lay_out(plan_segments(checkpoint, self.config, dtype), 0)

    def prepare(self, dtype: str, folder: Path, on_bytes: OnBytes) -> PreparedFile:
        """The prepared file of a precision below `folder`, made on first use.

        Raises EngineFault MODEL_MISSING, MODEL_CORRUPT, DISK_FULL or PREPARED_UNWRITABLE.
        """
        checkpoint = open_checkpoint(self.checkpoint_path)
        plans = plan_segments(checkpoint, self.config, dtype)
        key = self._key(dtype)
        path = folder / f"{key}.{dtype}.prepared"
        return prepared_files.prepare(path, key, plans, self.checkpoint_path, on_bytes)

    def weights_path(self, dtype: str, folder: Path) -> Path:
        """What loading a precision will read: the prepared file, or the checkpoint to make it from.

        Raises OSError.
        """
        path = folder / f"{self._key(dtype)}.{dtype}.prepared"
        return path if path.exists() else self.checkpoint_path

    def _key(self, dtype: str) -> str:
        settings = f"{FORMAT}:{dtype}:{self.config.model_dump_json()}"
        content = f"{fingerprint(self.checkpoint_path)}:{settings}"
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def open_folder(folder: Path) -> ModelFolder:
    """Read the config of a model folder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    return ModelFolder(folder, config_file.read(folder))


class LoadedModel:
    """The weights in device memory: every segment is an allocation of its own, and layers of the
    transformer that do not stay are streamed. `close` it in the end.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: Mapping[str, Block],
        streamer: Streamer,
        prepared: PreparedFile,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.identity = prepared.path.name  # of checkpoint, folding and precision
        self._prepared = prepared
        self.streamer = streamer
        self._blocks = dict(blocks)

    @property
    def bytes(self) -> int:
        """Device bytes of all resident segments."""
        return sum(block.bytes for block in self._blocks.values()) + self.streamer.resident_bytes

    def weights(self, segment: str) -> Mapping[str, Tensor]:
        """The tensors of a segment outside the layers. KeyError if it was not loaded."""
        return self._blocks[segment].tensors

    def watermark(self) -> Mapping[str, Tensor]:
        """The watermark's tensors: those that were loaded, else an allocation of their own that
        goes when they go.
        """
        if WATERMARK in self._blocks:
            return self.weights(WATERMARK)
        return load_block(self._prepared, WATERMARK, self.device).tensors

    def layer(self, index: int) -> Mapping[str, Tensor]:
        """The tensors of a DiT layer that stays. KeyError for one that is streamed."""
        return self.streamer.stays(index).tensors

    def layers(self) -> Iterator[Mapping[str, Tensor]]:
        """One pass over the DiT: each layer's tensors in order, valid until the next one is asked
        for.
        """
        for block in self.streamer.blocks():
            yield block.tensors

    def close(self) -> None:
        """Give everything back; calling it twice is allowed."""
        self._blocks.clear()
        self.streamer.close()


def load(
    config: ModelConfig,
    prepared: PreparedFile,
    device: torch.device,
    on_bytes: OnBytes,
    *,
    watermark: bool = False,
    kept: int | None = None,
    pinned_max: int = 0,
) -> LoadedModel:
    """Copy the segments to the device; the watermark's only on request, and of the layers as many
    as are `kept` (None: all).

    Raises MemoryError, OSError or torch's OutOfMemoryError; nothing stays allocated then.
    """
    names = layer_names(config)
    order = residency_order(len(names))[: len(names) if kept is None else kept]
    outside = [e for e in prepared.segments.values() if _is_wanted(e.name, watermark)]
    total = sum(entry.bytes for entry in outside)
    total += sum(prepared.segments[names[index]].bytes for index in order)
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, total)

    blocks: dict[str, Block] = {}
    for entry in outside:
        blocks[entry.name] = load_block(prepared, entry.name, device)
        add(entry.bytes)
    streamer = Streamer(prepared, names, device, len(order), pinned_max=pinned_max, on_bytes=add)
    return LoadedModel(config, blocks, streamer, prepared, device)


def layer_names(config: ModelConfig) -> tuple[str, ...]:
    """The segments of the transformer's layers, in order."""
    return tuple(f"layer.{index}" for index in range(config.transformer.n_layers))


def _is_wanted(segment: str, watermark: bool) -> bool:
    """Whether a segment is loaded, and is no layer."""
    return not segment.startswith("layer.") and (watermark or segment != WATERMARK)
