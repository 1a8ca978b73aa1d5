"""Compares this implementation with reference numbers, set by set.

A set is a folder with `config.json`, `checkpoint.pt` and `.npz` cases; `tolerance.json` (by array
or by "case.array") lies in it or above it. Nothing depends on the names or sizes of the sets. The
weights go through the real loader: checkpoint, prepared file, blocks.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.engines.separation import model as models
from coscheduler.engines.separation import transformer
from coscheduler.engines.separation.anchors import TOKEN_IDS, Aligned, Span, align
from coscheduler.engines.separation.codec import Decoding, Encoding, Watermark, reflect_pad
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Integration, Windows, evaluation_times
from coscheduler.engines.separation.scheme import STEPS
from coscheduler.engines.separation.transformer import Condition

Array = NDArray[Any]
Case = Mapping[str, Array]
Results = Iterator[tuple[str, Tensor | Array]]
TOKENS = {number: token for token, number in TOKEN_IDS.items()}


@dataclass(frozen=True)
class Row:
    """One compared array. `error` is the largest absolute difference (inf: wrong shape)."""

    set: str
    case: str
    array: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """True within the tolerance."""
        return self.error <= self.tolerance


def run(folder: Path) -> list[Row]:
    """Compare every set below `folder`. Raises FileNotFoundError if there is none, KeyError for an
    array without a tolerance, EngineFault for a damaged model.
    """
    sets = sorted(path.parent for path in folder.rglob("checkpoint.pt"))
    facts = sorted(folder.rglob("processor_facts.json"))
    if not sets and not facts:
        raise FileNotFoundError(f"there is no vector set below {folder}")
    rows = [row for path in sets for row in _run_set(path, folder)]
    return rows + [row for path in facts for row in _run_facts(path, folder)]


def _run_set(path: Path, root: Path) -> list[Row]:
    tolerances = _tolerances(path, root)
    name = str(path.relative_to(root))
    rows = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        source = models.open_folder(path)
        prepared = source.prepare("float32", Path(scratch), quiet)
        loaded = models.load(source.config, prepared, torch.device("cpu"), quiet, watermark=True)
        for file in sorted(path.glob("*.npz")):
            case = read_case(file, path)
            compute = compute_of(file.stem)
            if compute is None:
                rows.append(Row(name, file.stem, "unknown kind of case", float("inf"), 0.0))
                continue
            for array, computed in compute(loaded, case):
                limit = tolerances(file.stem, array)
                if array in case and limit is not None:
                    rows.append(_compare(name, file.stem, array, case[array], computed, limit))
    return rows


def read_case(file: Path, folder: Path) -> Case:
    """A case's arrays. Intermediates come without inputs: theirs are those of the anchors case."""
    arrays = dict(np.load(file))
    if file.stem.startswith("dit_intermediates"):
        arrays |= {k: v for k, v in np.load(folder / "dit_anchors.npz").items() if k not in arrays}
        del arrays["velocity"]
    return arrays


def _encode_case(loaded: LoadedModel, case: Case) -> Results:
    hidden, features = _encode(loaded, _tensor(case["waveform"]))
    yield "z", hidden
    yield "features", features


def _decode_case(loaded: LoadedModel, case: Case) -> Results:
    codec = loaded.config.audio_codec
    latents = _tensor(case["latents"])
    decoding = Decoding(loaded.weights("decoder"), codec)
    yield "emb", decoding.embed(latents)
    yield "dec0", decoding.first(decoding.embed(latents), True)
    plain = Decoding(loaded.weights("decoder"), codec).push(latents, True)
    yield "waveform_nowm", plain
    bits = _tensor(case["message_bits"])
    mark = Watermark(loaded.weights("watermark"), codec, bits)
    yield "waveform_full", mark.push(plain, True)


def _dit_case(loaded: LoadedModel, case: Case) -> Results:
    """One velocity, and on the way whatever the case names."""
    config, core = loaded.config.transformer, loaded.weights("core")
    yield from _anchor_arrays(loaded, case)
    features = _tensor(case["audio_features"])
    condition, fixed = _condition(loaded, case), _fixed(loaded, case, features)
    at = transformer.times(core, config, _tensor(case["time"]))
    now = transformer.moment(core, condition, at, torch.arange(len(case["time"])))
    yield "t", at.embedding
    yield "t0", at.table.flatten(1)
    yield "memory", condition.memory + at.sinusoid[:, None]
    yield "y", now.context
    state = _tensor(case["noisy"])
    noisy = transformer.linear(state, core["noisy.weight"])
    anchors = core["anchors"][_anchor_ids(case)]
    yield "proj", noisy + fixed - anchors - core["video"]
    yield "after_video", noisy + fixed - anchors
    yield "after_anchors", noisy + fixed
    h = transformer.embed(core, state, fixed)
    yield "x_embedder", h
    norm = loaded.layer(0)["attention_norm"]
    yield "layer0_attn_norm", transformer.rms_norm(h, norm, config.norm_eps)
    for index in range(config.n_layers):
        h = transformer.layer(loaded.layer(index), config, h, now, condition)
        yield f"layer{index}", h
    yield "final_norm", transformer.rms_norm(h, core["final.norm"], config.norm_eps)
    yield "velocity", transformer.head(core, config, h, now)


def _separate_case(loaded: LoadedModel, case: Case) -> Results:
    """Encode, integrate, decode: the whole way from samples and noise to two signals."""
    yield from _anchor_arrays(loaded, case)
    _, features = _encode(loaded, _tensor(case["waveforms"]))
    yield "features", features
    yield "eval_times", evaluation_times()
    condition, fixed = _condition(loaded, case), _fixed(loaded, case, features.transpose(1, 2))
    state = _tensor(case["noise"]).clone()
    seen: dict[str, Tensor] = {}
    windows = Windows(state.shape[1], state.shape[1], (0,))
    core, config = loaded.weights("core"), loaded.config.transformer
    at = transformer.times(core, config, evaluation_times())

    def velocity(states: Sequence[Tensor], _: range, number: int) -> Any:
        (x,) = states
        seen[f"state_eval{number}"] = x.clone()
        now = transformer.moment(core, condition, at, number)
        h = transformer.embed(core, x, fixed)
        for index in range(config.n_layers):
            h = transformer.layer(loaded.layer(index), config, h, now, condition)
            yield
        return [transformer.head(core, config, h, now)]

    middle, speed = torch.empty_like(state), torch.empty_like(state)
    integration = Integration(state, middle, speed, windows, velocity)
    for index in range(STEPS):
        for _ in integration.step(index):
            pass
    yield from seen.items()
    yield "latent_final", state
    decoder, codec = loaded.weights("decoder"), loaded.config.audio_codec
    for name, latents in zip(("target", "residual"), state.chunk(2, dim=-1), strict=True):
        samples = Decoding(decoder, codec).push(latents.transpose(1, 2), True)
        yield f"{name}_nowm", samples[:, 0]


Compute = Callable[[LoadedModel, Case], Results]
_CASES: dict[str, Compute] = {
    "codec_encode": _encode_case,
    "codec_decode": _decode_case,
    "dit_": _dit_case,
    "separate_": _separate_case,
}


def compute_of(case: str) -> Compute | None:
    """What computes a case, by its name; None for an unknown kind."""
    return next((compute for kind, compute in _CASES.items() if case.startswith(kind)), None)


def _encode(loaded: LoadedModel, waveform: Tensor) -> tuple[Tensor, Tensor]:
    encoding = Encoding(loaded.weights("encoder"), loaded.config.audio_codec)
    tail = reflect_pad(waveform, loaded.config.audio_codec.hop)
    hidden = encoding.hidden(torch.cat((waveform, tail), dim=-1), True)
    return hidden, encoding.mean(hidden)


def _condition(loaded: LoadedModel, case: Case) -> Condition:
    mask = _tensor(case["audio_pad_mask"])
    return Condition(
        memory=transformer.text_memory(loaded.weights("core"), _tensor(case["text_features"])),
        memory_mask=_tensor(case["text_mask"]),
        frame_mask=mask,
        rotary=transformer.rotary_table(loaded.config.transformer, mask.shape[1], loaded.device),
    )


def _fixed(loaded: LoadedModel, case: Case, features: Tensor) -> Tensor:
    half = loaded.config.audio_codec.codebook_dim
    ids = _anchor_ids(case)
    return transformer.fixed_input(loaded.weights("core"), features[..., :half], ids)


def _anchor_ids(case: Case) -> Tensor:
    """The anchor id of every frame, [B, T]."""
    return torch.gather(_tensor(case["anchor_ids"]), 1, _tensor(case["anchor_alignment"]))


def _anchor_arrays(loaded: LoadedModel, case: Case) -> Results:
    """What the processor makes of the spans: exact."""
    mask = case["audio_pad_mask"]
    spans = [
        [Span(TOKENS[int(t)], s, e) for row, t, s, e in case.get("spans", ()) if row == number]
        for number in range(len(mask))
    ]
    codec = loaded.config.audio_codec
    sizes = [int(size) for size in mask.sum(axis=1)]
    aligned = align(sizes, spans, codec.sample_rate, codec.hop)
    yield from _aligned_arrays(aligned)


def _aligned_arrays(aligned: Aligned) -> Results:
    yield "anchor_ids", np.array(aligned.ids)
    yield "anchor_alignment", np.array(aligned.alignment)
    yield "audio_pad_mask", np.array(aligned.frame_mask)


def _run_facts(path: Path, root: Path) -> list[Row]:
    """The processor's integers: sizes, masks, alignments, output lengths."""
    rate, hop = _rate_and_hop(path.parent)
    rows = []
    for number, fact in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        sizes = [-(-length // hop) for length in fact["lengths"]]
        spans = [[Span(*span) for span in row] for row in fact["anchors"] or [[] for _ in sizes]]
        computed = dict(_aligned_arrays(align(sizes, spans, rate, hop)))
        computed |= {"sizes": np.array(sizes), "T": np.array(max(sizes))}
        computed["output_samples"] = np.array(sizes) * hop
        for array, value in computed.items():
            where = str(path.relative_to(root).parent)
            case = f"processor_facts[{number}]"
            rows.append(_compare(where, case, array, np.array(fact[array]), value, 0.0))
    return rows


def _rate_and_hop(folder: Path) -> tuple[int, int]:
    """Of the sets beside the facts; where there is none, of the published models."""
    for path in sorted(folder.rglob("config.json")):
        codec = models.open_folder(path.parent).config.audio_codec
        return codec.sample_rate, codec.hop
    return 48_000, 1920


def _compare(
    where: str, case: str, array: str, wanted: Array, computed: Tensor | Array, limit: float
) -> Row:
    found = np.asarray(computed, dtype=np.float64)
    if found.shape != wanted.shape:
        return Row(where, case, array, float("inf"), limit)
    error = float(np.max(np.abs(found - wanted.astype(np.float64)), initial=0.0))
    return Row(where, case, array, error, limit)


def _tolerances(folder: Path, root: Path) -> Callable[[str, str], float | None]:
    """Looks "case.array", then "array" up; integers and times must be exact. None: not stated."""
    found = (p / "tolerance.json" for p in (folder, *folder.parents) if p.is_relative_to(root))
    path = next((p for p in found if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is no tolerance.json in or above {folder}")
    table: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    exact = {"anchor_ids", "anchor_alignment", "audio_pad_mask", "eval_times"}

    def limit(case: str, array: str) -> float | None:
        if array in exact:
            return 0.0
        return table.get(f"{case}.{array}", table.get(array))

    return limit


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def quiet(done: int, total: int) -> None:
    """No progress is shown."""
