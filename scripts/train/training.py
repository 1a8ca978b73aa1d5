"""The training loop of every model: seeded, resumable, with a progress bar.

Learning rates follow the share of the training time that is spent, so that a run ends when it is
told to on any machine. Where a recipe counts the processor's time (the mean of the threads) a busy
machine takes longer and does no less. A run that is stopped goes on from its last checkpoint.

"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT_SECONDS = 60.0
_STEP_SECONDS_MAX = 5.0  # a step that took longer was interrupted; the time is not spent
_WARM_UP_STEPS = 150
_LAST_SHARE = 0.03  # of the peak learning rate, at the end


class Losses(Protocol):
    """What a model is trained by."""

    def __call__(self, rng: np.random.Generator, share: float) -> dict[str, Tensor]:
        """The loss of one step when `share` of the time is spent: terms by name, and `loss`."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    minutes: float
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    seed: int = 0
    processor_time: bool = False  # count that of the process, not the clock on the wall


def parser(name: str, description: str, minutes: float) -> argparse.ArgumentParser:
    """The options that all training scripts have."""
    made = argparse.ArgumentParser(
        prog=f"python scripts/train {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--work", type=Path, default=ROOT / ".train", help="checkpoints and data")
    made.add_argument("--minutes", type=float, default=minutes, help="of training (%(default)s)")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="%(default)s here")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--export", type=Path, help="write the model here, from the last checkpoint")
    return made


def fit(
    model: nn.Module,
    losses: Losses,
    recipe: Recipe,
    checkpoint: Path,
    report: Callable[[], str] = lambda: "",
) -> None:
    """Train `model` until `recipe.minutes` are spent; `report` says something at each checkpoint.

    A checkpoint that is there is gone on from. It is replaced as a whole.
    """
    torch.manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay
    )
    state = _resumed(model, optimizer, checkpoint)
    with _progress() as progress:
        task = progress.add_task("training", total=recipe.minutes * 60)
        while state.spent_seconds < recipe.minutes * 60:
            state.step(model, losses, optimizer, recipe)
            progress.update(task, completed=state.spent_seconds, description=state.said())
            if state.spent_seconds - state.kept_seconds > CHECKPOINT_SECONDS:
                _keep(model, optimizer, state, checkpoint)
                progress.console.print(f"{state.said()} {report()}")
    _keep(model, optimizer, state, checkpoint)


class _State:
    """How far a run is. Batches follow from the seed and the step, also after a resumption."""

    def __init__(self, steps: int = 0, spent_seconds: float = 0.0) -> None:
        self.steps, self.spent_seconds, self.kept_seconds = steps, spent_seconds, spent_seconds
        self._means: dict[str, float] = {}

    def step(
        self, model: nn.Module, losses: Losses, optimizer: torch.optim.Optimizer, recipe: Recipe
    ) -> None:
        started = _clock(recipe)
        share = min(1.0, self.spent_seconds / (recipe.minutes * 60))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(share, self.steps)
        terms = losses(np.random.default_rng([recipe.seed, self.steps]), share)
        optimizer.zero_grad()
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        self._note({name: float(term.detach()) for name, term in terms.items()})
        self.steps += 1
        self.spent_seconds += min(_clock(recipe) - started, _STEP_SECONDS_MAX)

    def _note(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._means[name] = 0.98 * self._means.get(name, value) + 0.02 * value

    def said(self) -> str:
        terms = " ".join(f"{name} {value:.3f}" for name, value in self._means.items())
        return f"{self.spent_seconds / 60:5.1f} min, {self.steps} steps: {terms}"


def _clock(recipe: Recipe) -> float:
    """Seconds of the clock that counts training."""
    if recipe.processor_time:
        return time.process_time() / torch.get_num_threads()
    return time.monotonic()


def _rate(share: float, steps: int) -> float:
    """Of the peak: a linear rise over _WARM_UP_STEPS, then a cosine down to _LAST_SHARE."""
    cosine = _LAST_SHARE + (1 - _LAST_SHARE) * 0.5 * (1 + np.cos(np.pi * share))
    return float(cosine * min(1.0, (steps + 1) / _WARM_UP_STEPS))


def _resumed(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> _State:
    if not checkpoint.exists():
        return _State()
    kept: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return _State(kept["steps"], kept["spent_seconds"])


def _keep(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: _State, checkpoint: Path
) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    new = checkpoint.with_suffix(".new")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "steps": state.steps,
            "spent_seconds": state.spent_seconds,
        },
        new,
    )
    new.replace(checkpoint)
    state.kept_seconds = state.spent_seconds


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(soft_wrap=True), refresh_per_second=1)
