"""Input that is wrong or at a limit: a clear error or a note, and an engine that goes on."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coscheduler import audio
from coscheduler.engines.base import Task
from coscheduler.engines.separation import footprint, text
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.model import ModelFolder
from coscheduler.engines.separation.sampler import plan_windows
from coscheduler.errors import EngineFault, InvalidInput
from tests.engines.separation.conftest import RATE, finish, noise

MakeTask = Callable[..., Task]


def prompt_of(source: text.TextEncoderFolder, count: int) -> str:
    """A prompt of exactly so many tokens, the end token included."""
    prompt = " ".join(["a"] * (count - 1))  # at most 2000 characters are let through
    assert len(text.tokenize(source, prompt, count)) == count
    return prompt


def test_512_tokens_are_taken_and_513_refused(
    models: Path, engine: SeparationEngine, task: MakeTask
) -> None:
    source = text.open_text_encoder(models / "t5", 64)
    result, _ = finish(engine, task(noise(0.1), prompt=prompt_of(source, 512)))
    assert result.numbers["token_count"] == 512
    with pytest.raises(InvalidInput) as caught:
        finish(engine, task(noise(0.1), prompt=prompt_of(source, 513)))
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert caught.value.numbers == {"token_count": "513", "token_count_max": "512"}


def test_a_prompt_without_tokens_is_refused(engine: SeparationEngine, task: MakeTask) -> None:
    with pytest.raises(InvalidInput) as caught:
        finish(engine, task(noise(0.1), prompt="  "))
    assert caught.value.reason == "PROMPT_EMPTY"
    finish(engine, task(noise(0.1)))


def test_a_clipped_recording_is_separated(engine: SeparationEngine, task: MakeTask) -> None:
    made = task(np.clip(noise(0.3, level=5.0), -1.0, 1.0))
    finish(engine, made)
    target = audio.read_mono(made.output_dir / "target.wav", RATE)
    assert len(target) == len(noise(0.3))
    assert np.isfinite(target).all()


def test_windows_never_exceed_the_positions_of_the_model(source: ModelFolder) -> None:
    """10 000 frames are 400 s; an hour in windows as long as the config likes still fits."""
    limits = footprint.limits(source.config, window_ms=3_600_000)
    assert limits.window_frames == source.config.transformer.max_positions == 10_000
    windows = plan_windows(source.config.frame_count(3600 * RATE), limits.window_frames)
    assert windows.frames <= 10_000
    assert len(windows.starts) > 9


def test_a_full_disk_while_working_is_told_and_leaves_the_engine_usable(
    engine: SeparationEngine, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    held = engine.held()
    with monkeypatch.context() as patched, pytest.raises(EngineFault) as caught:
        patched.setattr(os, "posix_fallocate", full)
        finish(engine, task(noise(0.3)))
    assert caught.value.reason == "DISK_FULL"
    assert int(caught.value.numbers["required_bytes"]) > 0
    assert engine.held() == held
    finish(engine, task(noise(0.3)))


def test_a_full_disk_while_writing_results_is_told(
    engine: SeparationEngine, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = task(noise(0.3))
    with monkeypatch.context() as patched, pytest.raises(EngineFault) as caught:
        patched.setattr("coscheduler.audio.wave.open", full)
        finish(engine, made)
    assert caught.value.reason == "DISK_FULL"
    finish(engine, task(noise(0.3)))
