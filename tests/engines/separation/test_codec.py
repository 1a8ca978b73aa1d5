"""The codec: any tiling gives the untiled result, watermark included, and other rates work too."""

import pytest
import torch
from torch import Tensor

from coscheduler.engines.separation.codec import Decoding, Encoding, Watermark, reflect_pad
from coscheduler.engines.separation.model import LoadedModel

FRAMES, HOP = 12, 1920


def tiles(x: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(x, size, dim=2))


def run(coder: Encoding | Decoding, pieces: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        outs = [coder.push(x, i == len(pieces) - 1) for i, x in enumerate(pieces)]
        return torch.cat(outs, dim=2)


@pytest.fixture(scope="module")
def samples() -> Tensor:
    return 0.1 * torch.randn(1, 1, FRAMES * HOP, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 128, FRAMES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tile", [1, 5, 7, 11])
def test_encoding_in_tiles_is_encoding_at_once(
    loaded: LoadedModel, samples: Tensor, tile: int
) -> None:
    weights, codec = loaded.weights("encoder"), loaded.config.audio_codec
    whole = run(Encoding(weights, codec), [samples])
    tiled = run(Encoding(weights, codec), tiles(samples, tile * HOP))
    assert whole.shape == (1, 128, FRAMES)
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("tile", [1, 5, 7, 11])
def test_decoding_in_tiles_is_decoding_at_once(
    loaded: LoadedModel, latents: Tensor, tile: int, marked: bool
) -> None:
    codec = loaded.config.audio_codec
    bits = torch.tensor([[0, 1] * 8, [1, 1, 0, 0] * 4])

    def decoding() -> Decoding:
        mark = Watermark(loaded.weights("watermark"), codec, bits) if marked else None
        return Decoding(loaded.weights("decoder"), codec, mark)

    whole = run(decoding(), [latents])
    assert whole.shape == (2, 1, FRAMES * HOP)
    torch.testing.assert_close(run(decoding(), tiles(latents, tile)), whole, atol=2e-5, rtol=0)


def test_the_message_changes_the_watermark(loaded: LoadedModel, latents: Tensor) -> None:
    codec = loaded.config.audio_codec
    outs = []
    for bit in (0, 1):
        mark = Watermark(loaded.weights("watermark"), codec, torch.full((2, 16), bit))
        outs.append(run(Decoding(loaded.weights("decoder"), codec, mark), [latents]))
    plain = run(Decoding(loaded.weights("decoder"), codec), [latents])
    assert not torch.allclose(outs[0], outs[1], atol=1e-4)
    assert plain.abs().max() <= 1
    assert not torch.allclose(outs[0], plain, atol=1e-4)


@pytest.mark.parametrize(("count", "pad"), [(1920, 0), (1921, 1919), (961, 959), (3839, 1)])
def test_the_mirror_fills_the_last_frame(count: int, pad: int) -> None:
    x = torch.arange(float(count))
    tail = reflect_pad(x, HOP)
    assert len(tail) == pad
    if pad:
        whole = torch.nn.functional.pad(x[None], (0, pad), mode="reflect")[0]
        assert torch.equal(torch.cat((x, tail)), whole)
