"""The separator that is shipped, on voices, sentences and sounds that no training had.

`held_out_speech.flac`: 4 s of held-out sentences in two of the new voices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from coscheduler import audio
from coscheduler.engines.separation.api import SamAudio, Samples
from tests.train import on_path

with on_path():
    from train import sounds
    from train.separator_codec import RATE_HZ
    from train.separator_evaluate import MODEL
    from train.separator_scores import si_sdr_db

SPEECH = Path(__file__).with_name("held_out_speech.flac")
SECONDS = 1.5
SIZE_MAX_BYTES = 20 * 1024 * 1024
GAIN_DB_MIN = 3.0  # goal 6 in the mean; these are short and few


@dataclass(frozen=True)
class Case:
    """A held-out mixture at 2.5 dB and what float32 makes of it."""

    mixture: Samples
    speech: Samples
    target: Samples

    @property
    def gain_db(self) -> float:
        return si_sdr_db(self.target, self.speech) - si_sdr_db(self.mixture, self.speech)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def cases(prepared: Path) -> Iterator[dict[str, Case]]:
    speech = np.split(audio.read_mono(SPEECH, RATE_HZ), 2)
    made: dict[str, Case] = {}
    with SamAudio.load(MODEL, precision="float32", prepared_dir=prepared) as model:
        for index, kind in enumerate(sounds.KINDS):
            voice = speech[index % 2][: round(SECONDS * RATE_HZ)]
            mixture = sounds.mixed(voice, sounds.clip(kind, "test", 7, SECONDS), 2.5)
            target = model.separate(mixture, "speech", watermark=False).target
            made[kind] = Case(mixture, voice, target)
    yield made


@pytest.mark.parametrize("kind", sounds.KINDS)
def test_speech_comes_out_clearer_than_it_went_in(cases: dict[str, Case], kind: str) -> None:
    assert cases[kind].gain_db > GAIN_DB_MIN


def test_int8_gives_up_little(cases: dict[str, Case], prepared: Path) -> None:
    case = cases["noise"]
    with SamAudio.load(MODEL, precision="int8", prepared_dir=prepared) as model:
        target = model.separate(case.mixture, "speech", watermark=False).target
    gain = si_sdr_db(target, case.speech) - si_sdr_db(case.mixture, case.speech)
    assert gain > case.gain_db - 0.5


def test_the_folder_is_small() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SIZE_MAX_BYTES
    assert {"config.json", "checkpoint.pt"} <= {path.name for path in files}
