"""The handles: exact tokens, and no use after close."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coscheduler.engines.analysis import library, native, sampling, sequences
from coscheduler.engines.analysis.journal import Journal
from coscheduler.errors import EngineFault


@pytest.fixture
def journal() -> Journal:
    return library.open_library()


@pytest.fixture
def model(tiny_model: Path, journal: Journal) -> Iterator[native.Model]:
    model = native.Model(native.ModelSpec(tiny_model, use_mmap=False), journal)
    yield model
    model.close()


@pytest.mark.parametrize("text", ["", "We ship on friday.", "Grüße, 世界!", "a\nb\tc", "<|end|>"])
def test_tokens_give_the_text_back(model: native.Model, text: str) -> None:
    tokens = model.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(model.piece(token) for token in tokens).decode() == text


def test_control_tokens_are_found(model: native.Model) -> None:
    assert set(model.control_texts()) == {
        "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>",
    }  # fmt: skip
    assert (model.bos_text, model.eos_text, model.adds_bos) == ("<|bos|>", "<|end|>", True)
    (end,) = model.tokenize("<|end|>", add_special=False, parse_special=True)
    assert model.is_end(end)
    assert model.piece(end) == b""


def test_closed_handles_raise_instead_of_crashing(model: native.Model, journal: Journal) -> None:
    context = sequences.Context(model, sequences.ContextSpec(256, 64, "f16", 1), journal)
    sampler = sampling.Sampler(model, sampling.Sampling(0, 1, 1, 0), None)
    for handle in (sampler, context, model):
        handle.close()
        handle.close()
    with pytest.raises(RuntimeError, match="context is closed"):
        context.decode([1])
    with pytest.raises(RuntimeError, match="context is closed"):
        context.logits()
    with pytest.raises(RuntimeError, match="sampler is closed"):
        sampler.sample(context)
    with pytest.raises(RuntimeError, match="model is closed"):
        model.tokenize("a", add_special=False, parse_special=False)


def test_the_library_belongs_to_one_thread(model: native.Model, journal: Journal) -> None:
    context = sequences.Context(model, sequences.ContextSpec(256, 64, "f16", 1), journal)
    caught: list[str] = []

    def elsewhere() -> None:
        for call in (lambda: context.decode([1]), lambda: model.is_end(1), context.forget):
            with pytest.raises(RuntimeError) as raised:
                call()
            caught.append(str(raised.value))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 3
    assert all("another thread" in text for text in caught)
    context.decode([1])  # still the owner's
    context.close()


def test_tokens_behind_a_count_are_dropped(model: native.Model, journal: Journal) -> None:
    context = sequences.Context(model, sequences.ContextSpec(256, 64, "f16", 1), journal)
    context.decode([5, 6, 7])
    expected = context.logits().copy()
    context.decode([8, 9])
    assert context.rewind(2)
    context.decode([7])
    assert abs(context.logits() - expected).max() < 0.02
    assert not context.rewind(0)  # nothing to keep: empty
    context.decode([5, 6])
    assert context.rewind(2)
    context.close()


def test_a_full_context_is_a_fault(model: native.Model, journal: Journal) -> None:
    context = sequences.Context(model, sequences.ContextSpec(256, 256, "f16", 1), journal)
    context.decode([5] * 256)
    with pytest.raises(EngineFault) as caught:
        context.decode([5])
    assert caught.value.reason == "DECODE_FAILED"
    context.forget()
    context.decode([5])
    context.close()


def test_logits_do_not_depend_on_the_chunks(model: native.Model, journal: Journal) -> None:
    tokens = model.tokenize("We ship the report on friday.", add_special=True, parse_special=False)
    found = []
    for size in (len(tokens), 4, 1):
        context = sequences.Context(model, sequences.ContextSpec(256, 64, "f16", 1), journal)
        for start in range(0, len(tokens), size):
            context.decode(tokens[start : start + size])
        found.append(context.logits().copy())
        context.close()
    assert abs(found[0] - found[1]).max() < 0.02
    assert abs(found[0] - found[2]).max() < 0.02


def test_an_impossible_context_is_a_fault(
    write_model: Callable[..., Path], journal: Journal
) -> None:
    path = write_model(width=48, head_count=2, kv_head_count=1)  # heads of 24: no whole block
    model = native.Model(native.ModelSpec(path, use_mmap=False), journal)
    with pytest.raises(EngineFault) as caught:
        sequences.Context(model, sequences.ContextSpec(256, 64, "q8_0", 1), journal)
    assert caught.value.reason == "CONTEXT_FAILED"
    assert "24" in caught.value.message  # the library's own words
    model.close()
