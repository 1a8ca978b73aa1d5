"""The analysis engine against bare llama-cpp-python, and its ways of reading against each other.

1. The same prompt and number of tokens, same settings, in turns: time to the first token, tokens
   per second, peak of anonymous memory of each process.
2. A long transcript in pieces, with the shared beginning of prompts reused and decoded anew.
3. The same transcript in pieces and in one long context: time and KV cache.
4. The same pieces one after the other and side by side, in one context of twice the size.
5. A conversation restored from its saved state against reading it again.
6. Coming into memory: weights copied or mapped, from a warm and a cold page cache, or the context
   alone.

The model has random weights unless --model names a file: times depend on the shape alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from coscheduler import config
from coscheduler.core.model import Line, StageKind
from coscheduler.demo import tiny_llm
from coscheduler.engines.analysis import answering, library, native, sampling, sequences, states
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.base import Task
from coscheduler.procfs import anonymous_bytes
from measures import _residency, _workers
from measures._ratios import Ratio, ratio
from measures._workers import Worker, ask

MIB = 2**20
SHAPE = tiny_llm.Shape(
    layer_count=8, width=512, head_count=8, kv_head_count=4, feed_forward=1536, n_ctx_train=65_536
)
N_BATCH = 256


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure analysis", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="a GGUF file (default: random weights)")
    parser.add_argument("--rounds", type=int, default=9, help="of each comparison, at least 7")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--minutes", type=int, default=30, help="of talk, for the long transcript")
    parser.add_argument("--session-tokens", type=int, default=2048, help="of a conversation")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON to this file too")
    parser.add_argument("--worker", choices=["ours", "bare"], help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if chosen.worker:
        serve(chosen)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if chosen.model is None:
            chosen.model = Path(folder) / "model.gguf"
            tiny_llm.write(chosen.model, shape=SHAPE)
        found = {"against_bare": against_bare(chosen)} | long_transcripts(chosen, Path(folder))
        model, threads, rounds = chosen.model, chosen.threads, chosen.rounds
        tokens = chosen.session_tokens
        found["session"] = _residency.sessions(model, Path(folder), threads, rounds, tokens)
        found["reloads"] = _residency.reloads(model, threads, rounds)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if chosen.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


# -- one prompt, two libraries


def against_bare(chosen: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both workers in turns, the order changing from round to round."""
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    with worker("ours", chosen) as ours, worker("bare", chosen) as bare:
        both = {"ours": ours, "bare": bare}
        for name in both:
            ask(both[name])  # warm
        for number in range(chosen.rounds):
            for name in sorted(both, reverse=bool(number % 2)):
                rows[name].append(ask(both[name]))
    fields = tuple(rows["ours"][0])
    taken = {name: {field: [row[field] for row in rows[name]] for field in fields} for name in rows}
    return {
        "medians": {
            name: {field: statistics.median(values) for field, values in taken[name].items()}
            for name in taken
        },
        "ratios": {
            field: vars(ratio(taken["ours"][field], taken["bare"][field])) for field in fields
        },
    }


def worker(name: str, chosen: argparse.Namespace) -> AbstractContextManager[Worker]:
    """A process that has loaded the model in one of the two ways."""
    options = ["--prompt-tokens", chosen.prompt_tokens, "--tokens", chosen.tokens]
    common = ["--threads", chosen.threads, "--model", chosen.model, "--worker", name]
    return _workers.worker("analysis", options + common)


def serve(chosen: argparse.Namespace) -> None:
    """The worker's side: a round for each line of standard input."""
    base = anonymous_bytes("self")
    one = Ours(chosen) if chosen.worker == "ours" else Bare(chosen)
    prompt = [20 + 7 * index % 200 for index in range(chosen.prompt_tokens)]
    peak = 0
    for _ in sys.stdin:
        first_ms, first_cpu_ms = milliseconds(one, prompt, 1)
        whole_ms, whole_cpu_ms = milliseconds(one, prompt, chosen.tokens)
        peak = max(peak, anonymous_bytes("self") - base)
        row = {
            "first_ms": first_ms,
            "first_cpu_ms": first_cpu_ms,
            "token_ms": (whole_ms - first_ms) / (chosen.tokens - 1),
            "token_cpu_ms": (whole_cpu_ms - first_cpu_ms) / (chosen.tokens - 1),
            "peak_bytes": peak,
        }
        print(json.dumps(row), flush=True)


def milliseconds(one: "Ours | Bare", prompt: list[int], count: int) -> tuple[float, float]:
    """Time of one answer by the clock, and of the processor: others may be busy beside us."""
    start, cpu_start = time.perf_counter(), time.process_time()
    one.answer(prompt, count)
    cpu = time.process_time() - cpu_start
    return (time.perf_counter() - start) * 1000, cpu * 1000


class Ours:
    """The engine's own classes."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        journal = library.open_library()
        self.model = native.Model(native.ModelSpec(chosen.model, use_mmap=False), journal)
        spec = sequences.ContextSpec(n_ctx(chosen), N_BATCH, "f16", chosen.threads)
        context = sequences.Context(self.model, spec, journal)
        nothing = states.States(None, 0, {})
        self.conversation = answering.Conversation(self.model, context, N_BATCH, nothing)
        self.model.is_end = lambda token: False  # type: ignore[method-assign]

    def answer(self, prompt: list[int], count: int) -> None:
        """Draw so many tokens, the likeliest each time."""
        call = answering.Call(tuple(prompt), 0, count, sampling.Sampling(0, 1, 1, 0), None)
        for _ in self.conversation.answer(answering.Attempt(call)):
            pass


class Bare:
    """llama-cpp-python as its users use it, with the same settings."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            str(chosen.model), n_ctx=n_ctx(chosen), n_batch=N_BATCH, n_ubatch=N_BATCH,
            n_threads=chosen.threads, n_threads_batch=chosen.threads, use_mmap=False,
            flash_attn=True, swa_full=False, verbose=False,
        )  # fmt: skip

    def answer(self, prompt: list[int], count: int) -> None:
        """Draw so many tokens, the likeliest each time."""
        self.llama.reset()  # type: ignore[no-untyped-call]
        drawn = self.llama.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0)
        for _ in range(count):
            next(drawn)
        drawn.close()


def n_ctx(chosen: argparse.Namespace) -> int:
    """The context of both, in whole cells."""
    return -(-int(chosen.prompt_tokens + chosen.tokens) // 256) * 256


# -- one transcript, several ways


def long_transcripts(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Reading in pieces of 4K against decoding every beginning anew, and against one context."""
    talk = folder / "talk.json"
    words = sorted(tiny_llm.WORDS)
    segments = [
        {"start": 6.0 * index, "end": 6.0 * index + 5, "speaker": f"SPEAKER_0{index % 3}",
         "text": " ".join(words[(7 * index + 3 * n) % len(words)] for n in range(15))}
        for index in range(chosen.minutes * 10)
    ]  # fmt: skip
    talk.write_text(json.dumps({"language": "en", "segments": segments}))
    small, large = loaded(chosen, folder, 4096), loaded(chosen, folder, 65_536)
    one_by_one = loaded(chosen, folder, 8192, sequences_max=1)
    beside = loaded(chosen, folder, 8192, sequences_max=2, piece_tokens_max=4096)
    rewind = sequences.Context.rewind

    def anew(self: sequences.Context, count: int, sequence: int = 0) -> bool:
        return rewind(self, 0, sequence)

    names = ("pieces", "anew", "one_context", "one_by_one", "side_by_side")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(chosen.rounds):
        times["pieces"].append(read(small, talk, folder))
        sequences.Context.rewind = anew  # type: ignore[method-assign]
        times["anew"].append(read(small, talk, folder))
        sequences.Context.rewind = rewind  # type: ignore[method-assign]
        times["one_context"].append(read(large, talk, folder))
        times["one_by_one"].append(read(one_by_one, talk, folder))
        times["side_by_side"].append(read(beside, talk, folder))
    kv = {"pieces": kv_bytes(small), "one_context": kv_bytes(large)}
    for engine in (small, large, one_by_one, beside):
        engine.unload()
    return {
        "side_by_side": {
            "medians_s": {
                name: statistics.median(times[name]) for name in ("side_by_side", "one_by_one")
            },
            "ratio": vars(ratio(times["side_by_side"], times["one_by_one"])),
        },
        "prefix_reuse": {
            "medians_s": {name: statistics.median(times[name]) for name in ("pieces", "anew")},
            "ratio": vars(ratio(times["pieces"], times["anew"])),
        },
        "pieces_against_one_context": {
            "medians_s": {
                name: statistics.median(times[name]) for name in ("pieces", "one_context")
            },
            "ratio": vars(ratio(times["pieces"], times["one_context"])),
            "kv_bytes": kv,
        },
    }


def loaded(
    chosen: argparse.Namespace, folder: Path, context_tokens: int, **analysis: int
) -> AnalysisEngine:
    """An engine with a context of this size, which keeps nothing from one task to the next."""
    settings = config.parse(
        {
            "device": {"threads": chosen.threads},
            "store": {"data_dir": str(folder)},
            "analysis": {
                "model": str(chosen.model), "n_ctx_max": context_tokens, "kv_cache_max": "64 GiB",
                "n_ctx_min": context_tokens, "n_batch": N_BATCH, "session_bytes_max": 0, **analysis,
            },
        },
        base_dir=Path.cwd(),
    )  # fmt: skip
    engine = AnalysisEngine(settings)
    engine.start()
    engine.load(engine.describe().options[0], lambda done, total: None)
    return engine


def read(engine: AnalysisEngine, talk: Path, folder: Path) -> float:
    """Seconds for one reading."""
    parameters = {"template": "decisions", "tokens_max": 64}
    task = Task("jobs/m", StageKind.ANALYZE, parameters, talk, folder, 0)
    start = time.perf_counter()
    for _ in engine.slices(task):
        pass
    return time.perf_counter() - start


def kv_bytes(engine: AnalysisEngine) -> int:
    """The KV cache that the engine holds while it works."""
    lines = engine.describe().options[0].run_lines(0)
    return sum(entry.bytes for entry in lines if entry.line is Line.KV_CACHE)


# -- for people


def show(found: dict[str, Any]) -> None:
    """A few lines."""
    bare = found["against_bare"]
    for field, what in (
        ("first_ms", "time to the first token, ms"),
        ("first_cpu_ms", "  of the processor"),
        ("token_ms", "time for each further token, ms"),
        ("token_cpu_ms", "  of the processor"),
        ("peak_bytes", "peak of anonymous memory, bytes"),
    ):
        ours, theirs = bare["medians"]["ours"][field], bare["medians"]["bare"][field]
        print(f"{what}: {ours:.2f}, bare {theirs:.2f}, ratio {Ratio(**bare['ratios'][field])}")
    reuse = found["prefix_reuse"]
    medians = reuse["medians_s"]
    print(
        f"in pieces: {medians['pieces']:.2f} s, with every beginning anew {medians['anew']:.2f} s, "
        f"ratio {Ratio(**reuse['ratio'])}"
    )
    one = found["pieces_against_one_context"]
    sizes = {name: size // MIB for name, size in one["kv_bytes"].items()}
    print(
        f"in one context: {one['medians_s']['one_context']:.2f} s, "
        f"{sizes['one_context']} MiB of KV cache; in pieces {sizes['pieces']} MiB, "
        f"ratio of times {Ratio(**one['ratio'])}"
    )
    beside = found["side_by_side"]["medians_s"]
    print(
        f"pieces side by side: {beside['side_by_side']:.2f} s, one by one "
        f"{beside['one_by_one']:.2f} s, ratio {Ratio(**found['side_by_side']['ratio'])}"
    )
    session = found["session"]
    medians = session["medians_s"]
    print(
        f"a conversation of {session['tokens']} tokens restored: {medians['restored']:.3f} s, read "
        f"again {medians['read_again']:.3f} s, ratio {Ratio(**session['ratio'])}"
    )
    for name, seconds in found["reloads"]["medians_s"].items():
        print(f"{name.replace('_', ' ')}: {seconds:.3f} s")
