"""Train the tiny separator: latents of a mixture and a class in, latents of that class's sound out.

Examples:
    python scripts/train separator --minutes 60
    python scripts/train separator --minutes 60 --export coscheduler/demo/trained/sam-audio-demo

A run that was stopped goes on from its last checkpoint; with the minutes spent it only exports. The
estimate is learned by plain regression; `separator_export` makes the ODE's velocity of it.

"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train import separator_data, separator_export, training
from train.separator_data import Batch, Pools
from train.separator_net import Separator
from train.separator_scores import improvements_db

ROWS, FRAMES = 8, 256
LEARNING_RATE = 1.5e-3
ERROR_FLOOR = 1e-3  # of the target's energy: what is better than 30 dB is good enough
LEVELLED_SHARE = 0.3
SENTENCES, CLIPS = 4000, 500
LEVEL_BATCHES = 8


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = training.parser("separator", __doc__ or "", minutes=60.0)
    parser.add_argument("--name", default="separator", help="of the run and its checkpoint")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="peak learning rate")
    parser.add_argument("--rows", type=int, default=ROWS, help="mixtures in a batch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = options.work / "separator"
    pools = Pools.load(folder / "pools.pt", options.seed, SENTENCES, CLIPS)
    spread = spread_of(pools)
    net = Separator().to(options.device)
    held_out = separator_data.examples(options.seed + 1, per_case=4)

    def losses(rng: np.random.Generator, share: float) -> dict[str, Tensor]:
        batch = pools.batch(rng, options.rows, FRAMES).to(options.device)
        return _losses(net, batch, spread.to(options.device))

    def report() -> str:
        means = improvements_db(net, spread, held_out)
        return " ".join(f"{kind} {value:.2f}" for kind, value in means.items())

    recipe = training.Recipe(options.minutes, options.rate, 0.01, seed=options.seed)
    training.fit(net, losses, recipe, folder / f"{options.name}.pt", report)
    print(f"SI-SDR improvement in dB: {report()}")
    if options.export is not None:
        _export(net, pools, spread, options.export)
    return 0


def spread_of(pools: Pools) -> Tensor:
    """What divides each band's coefficients, [bands]: half way (in dB) to the spread of speech, so
    that neither the highest bands of speech nor those of white noise are extreme.
    """
    spread = pools.spread()
    return (spread * spread.square().mean().sqrt()).sqrt()


def _losses(net: Separator, batch: Batch, spread: Tensor) -> dict[str, Tensor]:
    """The error's level below the target in dB: of the signal, and of the levelled latents, in
    which quiet high bands count too.
    """
    mixture, target = batch.mixture / spread, batch.target / spread
    with torch.autocast(mixture.device.type, torch.bfloat16):
        estimate = net(mixture, batch.classes)
    signal = _error_db(estimate.float() * spread, batch.target, batch.mixture)
    levelled = _error_db(estimate.float(), target, mixture)
    return {"loss": signal + LEVELLED_SHARE * levelled, "signal": signal, "levelled": levelled}


def _error_db(estimate: Tensor, target: Tensor, mixture: Tensor) -> Tensor:
    """Mean over rows; a silent target's error counts against the mixture."""
    energy = target.square().sum((1, 2))
    reference = torch.where(energy > 0, energy, mixture.square().sum((1, 2)))
    error = (estimate - target).square().sum((1, 2)) / reference.clamp(min=1e-9)
    return 10 * torch.log10(error + ERROR_FLOOR).mean()


@torch.inference_mode()
def _export(net: Separator, pools: Pools, spread: Tensor, folder: Path) -> None:
    """Write the folder, with the stream's level as training batches have it."""
    net.cpu()
    levels = []
    for index in range(LEVEL_BATCHES):
        batch = pools.batch(np.random.default_rng([9, index]), 4, FRAMES)
        net(batch.mixture / spread, batch.classes)
        levels.append(float(net.level.mean()))
    separator_export.export(net, spread, float(np.mean(levels)), folder)
    print(f"wrote {folder}")
