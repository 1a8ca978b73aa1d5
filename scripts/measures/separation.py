"""SAM-Audio: precisions and tiles against each other and against the same computation done plainly.

1. One evaluation of the transformer over one window: float32, bfloat16, int8, and the plain way
   (the checkpoint's own tensors, nothing folded or kept between evaluations).
2. The codec in tiles against the codec over the whole piece at once.

Rounds are interleaved and their order changes. Times are given by the clock and of the processor:
on a shared machine only the second says what the work costs.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coscheduler.demo import tiny_sam_audio
from coscheduler.engines.separation import footprint, model, sampler, transformer
from coscheduler.engines.separation.codec import Decoding, Encoding
from coscheduler.engines.separation.model import LoadedModel, ModelFolder
from coscheduler.engines.separation.offer import PRECISIONS
from coscheduler.engines.separation.sampler import Windows
from coscheduler.engines.separation.scheme import EVALUATIONS
from coscheduler.engines.separation.velocity import WindowVelocity
from measures._ratios import ratio

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 8
ROUNDS_MIN = 7

Work = Callable[[], object]
Times = dict[str, list[float]]


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure separation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="a model folder (default: tiny, random)")
    parser.add_argument("--prepared-dir", type=Path, help="(default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=9, help=f"at least {ROUNDS_MIN}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio in a window")
    parser.add_argument("--codec-seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < ROUNDS_MIN:
        parser.error(f"--rounds must be at least {ROUNDS_MIN}")
    with tempfile.TemporaryDirectory() as scratch:
        complete(chosen, Path(scratch))
        found = measure(chosen)
    text = json.dumps(found, indent=2)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n", encoding="ascii")
    print(text)
    return 0


def complete(chosen: argparse.Namespace, scratch: Path) -> None:
    """Fill in what was not given."""
    if chosen.model is None:
        chosen.model = scratch / "tiny"
        tiny_sam_audio.write(chosen.model, scratch / "t5")
    chosen.prepared_dir = chosen.prepared_dir or scratch / "prepared"


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything asked for."""
    torch.set_num_threads(chosen.threads)
    source = model.open_folder(chosen.model)
    found: dict[str, Any] = {"machine": machine(chosen), "model": shape_of(source)}
    with torch.inference_mode():
        found["evaluation"] = evaluations(chosen, source)
        found["codec"] = codecs(chosen, source)
    return found


def machine(chosen: argparse.Namespace) -> dict[str, Any]:
    """What it ran on, and how busy that was."""
    rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": chosen.threads,
        "load_average_before": os.getloadavg()[0],
        "shared": "other programs were running: see the load",
        "torch": torch.__version__,
        "rounds": chosen.rounds,
    }


def shape_of(source: ModelFolder) -> dict[str, Any]:
    """The sizes that decide about times; the values of the weights do not."""
    net = source.config.transformer
    return {"dim": net.dim, "layers": net.n_layers, "heads": net.n_heads}


# -- times


def interleaved(work: Mapping[str, Work], rounds: int) -> dict[str, Any]:
    """Each piece of work once to warm up, then rounds in changing order; all times, summed up."""
    clock: Times = {name: [] for name in work}
    processor: Times = {name: [] for name in work}
    for run in work.values():
        run()
    for number in range(rounds):
        for name in sorted(work, reverse=bool(number % 2)):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            work[name]()
            processor[name].append(time.process_time() - begun_cpu)
            clock[name].append(time.perf_counter() - begun)
    return {
        "clock_s": {name: spread(times) for name, times in clock.items()},
        "processor_s": {name: spread(times) for name, times in processor.items()},
        "all_processor_s": processor,
    }


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "low": low, "high": high}


def with_ratios(found: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Processor time of one over that of another, round by round."""
    times = found.pop("all_processor_s")
    ratios = {f"{one} / {other}": vars(ratio(times[one], times[other])) for one, other in pairs}
    return {**found, "processor_ratios": ratios}


def evaluations(chosen: argparse.Namespace, source: ModelFolder) -> dict[str, Any]:
    """Seconds of one evaluation over a window."""
    frames = source.config.frame_count(
        round(chosen.seconds * source.config.audio_codec.sample_rate)
    )
    work: dict[str, Work] = {
        precision: evaluation(loaded(chosen, source, precision), frames) for precision in PRECISIONS
    }
    work["plain"] = plain(source, frames)
    found = interleaved(work, chosen.rounds)
    pairs = (("float32", "plain"), ("bfloat16", "float32"), ("int8", "float32"))
    medians = {name: times["median"] for name, times in found["processor_s"].items()}
    return {
        "window_s": chosen.seconds,
        "frames": frames,
        **with_ratios(found, pairs),
        "processor_s_per_audio_s": {
            name: EVALUATIONS * median / chosen.seconds for name, median in medians.items()
        },
    }


def loaded(chosen: argparse.Namespace, source: ModelFolder, precision: str) -> LoadedModel:
    """The resident model in a precision."""
    prepared = source.prepare(precision, chosen.prepared_dir, ignore)
    return model.load(source.config, prepared, torch.device("cpu"), ignore)


def evaluation(ready: LoadedModel, frames: int) -> Work:
    """One evaluation as the engine does it; what does not change between them is there already."""
    made = inputs(ready.config, frames)
    memory = transformer.text_memory(ready.weights("core"), made["text"])
    windows = Windows(frames, frames, (0,))
    anchors = torch.zeros(frames, dtype=torch.int64)
    velocity = WindowVelocity(ready, made["features"][0], anchors, windows, memory)

    numbers = itertools.cycle(range(EVALUATIONS))  # what depends on the time is made anew

    def run() -> None:
        for _ in velocity([made["noisy"]], range(1), next(numbers)):
            pass

    return run


def plain(source: ModelFolder, frames: int) -> Work:
    """One evaluation written out, from the tensors as the checkpoint has them."""
    sys.path.insert(0, str(ROOT))
    from tests.engines.separation import naive

    checkpoint = torch.load(source.checkpoint_path, mmap=True, weights_only=True)
    weights = {key: value.clone() for key, value in checkpoint.items() if is_dit(key)}
    made = inputs(source.config, frames)
    ids = torch.zeros(1, frames, dtype=torch.int64)
    text_mask, frame_mask = torch.ones(1, TOKENS) > 0, torch.ones(1, frames) > 0
    at = sampler.evaluation_times()[5:6]

    def run() -> Tensor:
        return naive.velocity(
            weights, source.config, made["noisy"], made["features"], ids, made["text"],
            text_mask, frame_mask, at,
        )  # fmt: skip

    return run


def is_dit(key: str) -> bool:
    """What is no part of the codec or of the vision model."""
    return not key.startswith(("audio_codec.", "vision_encoder."))


def inputs(shape: Any, frames: int) -> dict[str, Tensor]:
    """Random inputs of a window."""
    half = shape.audio_codec.codebook_dim
    return {
        "noisy": torch.randn(1, frames, 2 * half),
        "features": torch.randn(1, frames, half),
        "text": torch.randn(1, TOKENS, shape.text_encoder.dim),
    }


def codecs(chosen: argparse.Namespace, source: ModelFolder) -> dict[str, Any]:
    """Seconds of one direction of the codec, tiled as the engine does it and at once."""
    ready = loaded(chosen, source, "float32")
    codec, limits = source.config.audio_codec, footprint.limits(source.config, 30_000)
    frames = source.config.frame_count(round(chosen.codec_seconds * codec.sample_rate))
    samples = 0.1 * torch.randn(1, 1, frames * codec.hop)
    latents = torch.randn(2, codec.codebook_dim, frames)

    def encode(tile: int) -> Work:
        return lambda: run_tiles(
            Encoding(ready.weights("encoder"), codec), samples, tile * codec.hop
        )

    def decode(tile: int) -> Work:
        return lambda: run_tiles(Decoding(ready.weights("decoder"), codec), latents, tile)

    work = {
        "encode tiled": encode(limits.encode_tile_frames), "encode whole": encode(frames),
        "decode tiled": decode(limits.decode_tile_frames), "decode whole": decode(frames),
    }  # fmt: skip
    pairs = (("encode tiled", "encode whole"), ("decode tiled", "decode whole"))
    found = with_ratios(interleaved(work, chosen.rounds), pairs)
    return {"audio_s": chosen.codec_seconds, "tiles": vars(limits), **found}


def run_tiles(coder: Encoding | Decoding, x: Tensor, size: int) -> None:
    """A signal through the codec in pieces."""
    for start in range(0, x.shape[2], size):
        coder.push(x[..., start : start + size], start + size >= x.shape[2])


def ignore(done: int, total: int) -> None:
    """No progress is shown."""
