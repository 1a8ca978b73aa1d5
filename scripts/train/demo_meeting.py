"""Make the demonstration's recording again: `python scripts/train demo_meeting [FILE]`.

Two people of espeak-ng plan their work for a minute, in sentences that no model was trained on;
noise, beeps and music from the pools for tests lie below. 16 kHz, mono, 16-bit FLAC. What is said
goes beside it as JSON: sentences with the speaker's number and the times of their words.
"""

import json
from pathlib import Path

import av
import numpy as np

from train import meetings, sentences, sounds
from train.meetings import Background, Meeting, Turn
from train.sentences import CAN_YOU_BY, SOMEONE_WILL, WILL_BY
from train.speech import RATE_HZ, Samples, Voice, Word

ROOT = Path(__file__).resolve().parent.parent.parent
SEED, SECONDS, SNR_DB = 7, 60.0, 15.0
VOICES = (Voice("gmw/en-US+f2", 165, 55), Voice("gmw/en-GB-x-rp+m3", 160, 40))
SCRIPT = (
    (0, "Welcome to the {topic} meeting, {name}."),
    (0, "Today we talk about {topic} and {topic}."),
    (1, "I think that the {thing} is {quality}."),
    (0, "The {group} says the {thing} is {quality}."),
    (1, WILL_BY),
    (0, CAN_YOU_BY),
    (1, "Yes, I talked to the {group} on {day}."),
    (1, "We need {number} more {unit} for the {thing}."),
    (0, "The {thing} costs {number} hundred dollars."),
    (1, SOMEONE_WILL),
    (0, "We decided to change the {thing} in {month}."),
    (0, WILL_BY),
    (1, CAN_YOU_BY),
    (0, "There are {number} questions about the {thing}."),
    (1, "The {group} was happy about the {thing}."),
    (0, SOMEONE_WILL),
    (1, WILL_BY),
    (0, "The {thing} starts on the {ordinal} of {month}."),
    (1, "We meet again on the {ordinal} of {month}."),
)


def main(arguments: list[str]) -> int:
    """Write the recording and the text, and say how large they are."""
    if "--help" in arguments or len(arguments) > 1:
        print(__doc__)
        return 0 if "--help" in arguments else 2
    path = Path(arguments[0]) if arguments else ROOT / "coscheduler" / "demo" / "planning.flac"
    made = meeting()
    write_flac(path, made.mixture, made.rate_hz)
    path.with_suffix(".json").write_text(_transcript(made), encoding="utf-8")
    print(f"{path}: {SECONDS:.0f} s, {len(made.turns)} sentences, {path.stat().st_size} bytes")
    return 0


def meeting() -> Meeting:
    """The same one always, with the same library."""
    rng = np.random.default_rng(SEED)
    said = [(speaker, sentences.draw(rng, "test", (text,))) for speaker, text in SCRIPT]
    background = Background(sounds.KINDS, SNR_DB)
    return meetings.spoken(rng, said, SECONDS, VOICES, background, RATE_HZ)


def read_turns(path: Path) -> tuple[Turn, ...]:
    """What is said in a recording, from the JSON beside it."""
    lines = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(
        Turn(line["speaker"], line["text"], tuple(Word(*word) for word in line["words"]))
        for line in lines
    )


def _transcript(made: Meeting) -> str:
    lines = [
        {
            "speaker": turn.speaker,
            "text": turn.text,
            "words": [(word.text, round(word.start, 3), round(word.end, 3)) for word in turn.words],
        }
        for turn in made.turns
    ]
    return "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"


def write_flac(path: Path, samples: Samples, rate_hz: int) -> None:
    """16 bits, mono, packed as tightly as the encoder can."""
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    with av.open(str(path), "w", format="flac") as file:
        options = {"compression_level": "12"}
        stream = file.add_stream("flac", rate=rate_hz, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz, frame_size=4608)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
