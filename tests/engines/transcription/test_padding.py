from typing import Any

import numpy as np
import pytest
import torch

from coscheduler.engines.transcription.speakers import Padded


class Embedding:
    """The mean of each row, weighted; remembers the sizes of its batches."""

    dimension = 1

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, waveforms: torch.Tensor, masks: torch.Tensor | None = None) -> Any:
        self.sizes.append(len(waveforms))
        rows = waveforms[:, 0] if masks is None else waveforms[:, 0] * masks
        return rows.mean(dim=1, keepdim=True).numpy()


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_every_batch_has_one_size_and_the_same_rows_come_back(count: int, with_masks: bool) -> None:
    embedding = Embedding()
    waveforms = torch.arange(count * 6.0).view(count, 1, 6)
    masks = (torch.arange(count * 6.0).view(count, 6) % 2) if with_masks else None
    plain = embedding(waveforms, masks=masks)
    padded = Padded(embedding, 4)(waveforms, masks=masks)
    assert embedding.sizes == [count, 4]
    assert padded.shape == (count, 1)
    assert np.array_equal(padded, plain)


def test_everything_else_is_the_embedding_s() -> None:
    assert Padded(Embedding(), 4).dimension == 1
