"""Any module with a list of blocks: the same bits as its own loop, and no block is changed."""

import pytest
import torch
from torch import Tensor, nn

from coscheduler.engines.streaming import prepared
from coscheduler.engines.streaming.modules import (
    block_names,
    calls,
    plan_blocks,
    without_weights,
)
from coscheduler.engines.streaming.streamer import Streamer

CPU = torch.device("cpu")
WIDTH, COUNT = 24, 5


class Block(nn.Module):
    """A residual block with parameters below it and a buffer of its own."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.register_buffer("scale", torch.rand(WIDTH), persistent=False)

    def forward(self, x: Tensor, shift: float) -> Tensor:
        mixed: Tensor = self.inner(self.norm(x)) * self.scale + shift
        return x + mixed


@pytest.fixture(scope="module")
def blocks() -> nn.ModuleList:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.ModuleList(Block() for _ in range(COUNT))


@pytest.fixture(scope="module")
def file(blocks: nn.ModuleList, tmp_path_factory: pytest.TempPathFactory) -> prepared.PreparedFile:
    path = tmp_path_factory.mktemp("modules") / "blocks.prepared"
    return prepared.prepare(path, "k", plan_blocks(list(blocks)), path, lambda done, total: None)


@torch.inference_mode()
@pytest.mark.parametrize("kept", range(COUNT + 1))
def test_the_owners_loop_gives_the_same_bits(
    blocks: nn.ModuleList, file: prepared.PreparedFile, kept: int
) -> None:
    x = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
    plain, streamed = x, x
    skeletons = without_weights(list(blocks))
    streamer = Streamer(file, block_names(COUNT), CPU, kept)
    for _ in range(2):
        for block in blocks:
            plain = block(plain, 0.5)
        for call in calls(skeletons, streamer):
            streamed = call(streamed, 0.5)
    streamer.close()
    assert torch.equal(plain, streamed)


def test_a_copy_without_weights_holds_none_and_leaves_the_module_alone(
    blocks: nn.ModuleList,
) -> None:
    before = {name: value.clone() for name, value in blocks.state_dict().items()}
    (skeleton, *_) = without_weights(list(blocks))
    assert {value.device.type for value in skeleton.parameters()} == {"meta"}
    assert all(torch.equal(value, before[name]) for name, value in blocks.state_dict().items())
    assert "forward" not in vars(blocks[0])


def test_a_type_that_files_do_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"block.0: weight is torch.float64; .* float32"):
        plan_blocks([nn.Linear(2, 2).double()])
