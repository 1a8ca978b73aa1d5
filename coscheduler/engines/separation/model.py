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
from coscheduler.engines.streaming.prepared import PreparedFile
from coscheduler.engines.streaming.segments import SegmentEntry, lay_out

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
        settings = f"{FORMAT}:{dtype}:{self.config.model_dump_json()}"
        content = f"{fingerprint(self.checkpoint_path)}:{settings}"
        key = hashlib.sha256(content.encode()).hexdigest()[:32]
        path = folder / f"{key}.{dtype}.prepared"
        return prepared_files.prepare(path, key, plans, self.checkpoint_path, on_bytes)


def open_folder(folder: Path) -> ModelFolder:
    """Read the config of a model folder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    return ModelFolder(folder, config_file.read(folder))


class LoadedModel:
    """The resident weights. Every segment is an allocation of its own."""

    def __init__(
        self, config: ModelConfig, identity: str, blocks: Mapping[str, Block], device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.identity = identity  # of checkpoint, folding and precision
        self._blocks = dict(blocks)

    @property
    def bytes(self) -> int:
        """Device bytes of all resident segments."""
        return sum(block.bytes for block in self._blocks.values())

    def weights(self, segment: str) -> Mapping[str, Tensor]:
        """A segment's tensors by name. KeyError if it is not resident."""
        return self._blocks[segment].tensors

    def layer(self, index: int) -> Mapping[str, Tensor]:
        """The tensors of a DiT layer."""
        return self.weights(f"layer.{index}")

    def layers(self) -> Iterator[Mapping[str, Tensor]]:
        """One pass over the DiT: each layer's tensors in order, valid until the next one is asked
        for.
        """
        for index in range(self.config.transformer.n_layers):
            yield self.layer(index)


def load(
    config: ModelConfig,
    prepared: PreparedFile,
    device: torch.device,
    on_bytes: OnBytes,
    *,
    watermark: bool = False,
) -> LoadedModel:
    """Copy the segments to the device; the watermark's only on request.

    Raises MemoryError or torch's OutOfMemoryError; nothing stays allocated then.
    """
    wanted = [e for e in prepared.segments.values() if watermark or e.name != WATERMARK]
    total = sum(entry.bytes for entry in wanted)
    blocks: dict[str, Block] = {}
    done = 0
    for entry in wanted:
        blocks[entry.name] = load_block(prepared, entry.name, device)
        done += entry.bytes
        on_bytes(done, total)
    return LoadedModel(config, prepared.path.name, blocks, device)
