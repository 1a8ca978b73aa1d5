"""The codec: any tiling gives the untiled result, watermark included, and other rates work too."""

import pytest
import torch
from torch import Tensor

from coscheduler.engines.separation.codec import Decoding, Encoding, Watermark, reflect_pad
from coscheduler.engines.separation.model import LoadedModel

FRAMES, HOP = 12, 1920


def tiles(x: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(x, size, dim=2))


def run(coder: Encoding | Decoding | Watermark, pieces: list[Tensor]) -> Tensor:
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


@pytest.mark.parametrize("tile", [1, 5, 7, 11])
def test_decoding_in_tiles_is_decoding_at_once(
    loaded: LoadedModel, latents: Tensor, tile: int
) -> None:
    weights, codec = loaded.weights("decoder"), loaded.config.audio_codec
    whole = run(Decoding(weights, codec), [latents])
    assert whole.shape == (2, 1, FRAMES * HOP)
    tiled = run(Decoding(weights, codec), tiles(latents, tile))
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("tile", [700, 1920, 1921, 5 * 1920])
def test_marking_in_tiles_is_marking_at_once(
    loaded: LoadedModel, samples: Tensor, tile: int
) -> None:
    both = torch.cat((samples, -samples))
    bits = torch.tensor([[0, 1] * 8, [1, 1, 0, 0] * 4])

    def mark() -> Watermark:
        return Watermark(loaded.weights("watermark"), loaded.config.audio_codec, bits)

    whole = run(mark(), [both])
    assert whole.shape == both.shape
    assert float((whole - both).abs().max()) > 1e-3
    torch.testing.assert_close(run(mark(), tiles(both, tile)), whole, atol=2e-5, rtol=0)


def test_the_message_changes_the_watermark(loaded: LoadedModel, samples: Tensor) -> None:
    outs = []
    for bit in (0, 1):
        message = torch.full((1, 16), bit)
        mark = Watermark(loaded.weights("watermark"), loaded.config.audio_codec, message)
        outs.append(run(mark, [samples]))
    assert not torch.allclose(outs[0], outs[1], atol=1e-4)
    assert not torch.allclose(outs[0], samples, atol=1e-4)


def test_a_decoded_signal_is_within_full_scale(loaded: LoadedModel, latents: Tensor) -> None:
    plain = run(Decoding(loaded.weights("decoder"), loaded.config.audio_codec), [latents])
    assert plain.abs().max() <= 1


@pytest.mark.parametrize(("count", "pad"), [(1920, 0), (1921, 1919), (961, 959), (3839, 1)])
def test_the_mirror_fills_the_last_frame(count: int, pad: int) -> None:
    x = torch.arange(float(count))
    tail = reflect_pad(x, HOP)
    assert len(tail) == pad
    if pad:
        whole = torch.nn.functional.pad(x[None], (0, pad), mode="reflect")[0]
        assert torch.equal(torch.cat((x, tail)), whole)
