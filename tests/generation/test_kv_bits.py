"""Bits of global layers' rows: 16 wherever these fit, 8 where they alone do, and it is said."""

import gc
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4 import generate_result, load, open_prompt_store
from mlx_gemma4.cache import global_caches
from mlx_gemma4.errors import MemoryLimitError
from mlx_gemma4.generation.batch import Batch
from mlx_gemma4.generation.batch_row import BatchFailure, BatchRequest
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.reading import memory_context, plan_reading, reserve
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import PREFILL_STEPS, MemoryLimit

# Shorter ones take less with 16 bits on a CPU, where int8 rows are unpacked beside the rest.
LENGTH = 4500
SLACK_BYTES = 100_000  # for what else an answer has in memory before its prompt is planned
PROMPT = f"Say the third word: red blue green. {'and ' * LENGTH}"


@pytest.fixture
def demo() -> Any:
    """Return the demo checkpoint in memory, whose limit and bits may be changed."""
    model, processor = load("demo", check_limits=False)
    mx.eval(model.parameters())
    gc.collect()
    mx.clear_cache()
    return model, processor


def text(length: int) -> ModelInputs:
    return ModelInputs.from_ids(np.arange(length) % 200 + 100)


def needed(model: Any, inputs: ModelInputs, kv_bits: int, **options: Any) -> int:
    """Return the bytes of the reading that takes least with so many bits."""
    model.memory_limit = None
    return min(
        plan_reading(
            inputs, model, model.make_cache(kv_bits=kv_bits), prefill_step_size=step, **options
        ).total_bytes
        for step in PREFILL_STEPS
    )


def limit(model: Any, limit_bytes: int) -> None:
    model.memory_limit = MemoryLimit(limit_bytes, "this test can hold")


def bits_of(prompt_cache: Any) -> set[int]:
    return {layer_cache.row_format.bits for layer_cache in global_caches(prompt_cache)}


def test_bits_are_chosen_at_the_byte(demo: Any) -> None:
    model, _ = demo
    inputs = text(LENGTH)
    with_16, with_8 = (needed(model, inputs, bits, max_tokens=100) for bits in (16, 8))
    assert with_8 < with_16

    def plan(limit_bytes: int, **options: Any) -> Any:
        limit(model, limit_bytes)
        cache = model.make_cache(**options)
        found = plan_reading(inputs, model, cache, max_tokens=100)
        assert bits_of(cache) == {options.get("kv_bits", 16)}  # a plan changes nothing
        return found

    assert plan(with_16).kv_bits == 16
    assert plan(with_16 - 1).kv_bits == 8
    assert plan(with_8).kv_bits == 8
    assert plan(with_8).total_bytes <= with_8
    with pytest.raises(MemoryLimitError, match=r"4,600 tokens in int8 .* can hold") as neither:
        plan(with_8 - 1)
    assert "--kv-bits" not in str(neither.value)
    # What somebody has said is kept to.
    with pytest.raises(MemoryLimitError, match=r"what would help: --kv-bits 8 \("):
        plan(with_16 - 1, kv_bits=16)
    assert plan(10**12, kv_bits=8).kv_bits == 8
    model.kv_bits = 16
    with pytest.raises(MemoryLimitError, match=r"what would help: --kv-bits 8 \("):
        plan(with_8)
    model.kv_bits, model.memory_limit = None, None
    assert plan_reading(inputs, model, model.make_cache()).kv_bits == 16


def test_a_chunk_size_of_the_users_stays_where_int8_rows_are_chosen(demo: Any) -> None:
    model, _ = demo
    cache = model.make_cache()
    fits = plan_reading(text(LENGTH), model, model.make_cache(kv_bits=8), prefill_step_size=100)
    limit(model, fits.total_bytes)
    assert plan_reading(text(LENGTH), model, cache, prefill_step_size=100) == fits


def test_the_answer_is_that_of_8_bits_within_the_limit_and_it_is_said(demo: Any) -> None:
    model, processor = demo
    inputs = processor(PROMPT)
    with_16, with_8 = (needed(model, inputs, bits, max_tokens=12) for bits in (16, 8))
    assert with_8 + SLACK_BYTES < with_16
    limit(model, with_8 + SLACK_BYTES)
    mx.reset_peak_memory()
    chosen = generate_result(model, processor, inputs, max_tokens=12, temp=0)
    assert mx.get_peak_memory() <= model.memory_limit.limit_bytes
    assert chosen.kv_bits == 8
    (note,) = [note for note in chosen.notes if "int8" in note]
    assert "since 16 bits do not fit; so it needs " in note
    assert f"{len(inputs) + 12:,} tokens in int8" in note
    assert "; this test can hold " in note
    asked = generate_result(
        model, processor, inputs, max_tokens=12, temp=0, prompt_cache=model.make_cache(kv_bits=8)
    )
    assert (asked.tokens, asked.kv_bits) == (chosen.tokens, 8)
    assert not any("int8" in note for note in asked.notes)
    lookup = generate_result(model, processor, inputs, max_tokens=12, temp=0, speculate="lookup")
    assert (lookup.tokens, lookup.kv_bits) == (chosen.tokens, 8)
    assert note in lookup.notes
    short = generate_result(model, processor, "Copy: cloud", max_tokens=1, temp=0)
    assert (short.kv_bits, short.notes) == (16, ())  # each conversation has its own


def test_a_loop_without_notes_chooses_too(demo: Any) -> None:
    model, _ = demo
    limit(model, needed(model, text(LENGTH), 8, max_tokens=1))
    cache = model.make_cache()
    assert len(list(generate_step(text(LENGTH), model, max_tokens=1, prompt_cache=cache))) == 1
    assert bits_of(cache) == {8}
    assert {array.dtype for array in global_caches(cache)[0].state} == {mx.int8, model.dtype}


def test_an_answer_without_end_is_chosen_for_by_its_prompt(demo: Any) -> None:
    """And its room is that of the rows that the cache has, whatever the model's are."""
    model, processor = demo
    inputs = text(LENGTH)
    limit(model, needed(model, inputs, 16))
    assert plan_reading(inputs, model, model.make_cache()).kv_bits == 16
    rooms = [memory_context(model, model.make_cache(kv_bits=bits)) for bits in (None, 16, 8)]
    assert LENGTH <= rooms[0] == rooms[1] < rooms[2]
    limit(model, needed(model, inputs, 16) - 1)
    cache = model.make_cache()
    reserve(model, cache, plan_reading(inputs, model, cache))
    assert memory_context(model, cache) > rooms[0]

    def never_stop(tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == 50, 0.0, -mx.inf)[None]

    limit(model, needed(model, inputs, 16) + SLACK_BYTES)
    answer: dict[str, Any] = {"temp": 0, "logits_processors": [never_stop]}
    result = generate_result(model, processor, inputs, **answer)
    assert (result.kv_bits, result.finish_reason) == (16, "length")
    assert "the answer ends where memory does: " in result.notes[-1]
    assert " with the prompt, " in result.notes[-1]
    assert result.notes[-1].endswith(" with --kv-bits 8")


def test_what_has_begun_keeps_its_bits(demo: Any) -> None:
    model, processor = demo
    first, second = text(LENGTH), text(2000)
    cache = model.make_cache()
    generate_result(model, processor, first, max_tokens=1, temp=0, prompt_cache=cache)
    whole = text(LENGTH + 2000)
    limit(model, needed(model, whole, 8, max_tokens=1))
    with pytest.raises(MemoryLimitError) as refused:
        generate_result(model, processor, second, max_tokens=1, temp=0, prompt_cache=cache)
    assert "what would help: the conversation read anew with --kv-bits 8 (" in str(refused.value)
    assert (cache[0].offset, bits_of(cache)) == (LENGTH, {16})
    cache = model.make_cache()
    limit(model, needed(model, first, 16, max_tokens=1) - 1)
    turns = [
        generate_result(model, processor, inputs, max_tokens=1, temp=0, prompt_cache=cache)
        for inputs in (first, text(5))
    ]
    assert [turn.kv_bits for turn in turns] == [8, 8]
    assert [any("int8" in note for note in turn.notes) for turn in turns] == [True, False]


def test_prompts_of_a_store_have_the_same_bits(demo: Any) -> None:
    model, processor = demo
    inputs = processor(PROMPT)
    options: dict[str, Any] = {"max_tokens": 2, "temp": 0}
    with_16, with_8 = (needed(model, inputs, bits, max_tokens=2) for bits in (16, 8))
    limit(model, with_16 - 1_000_000)
    assert with_8 < model.memory_limit.limit_bytes  # with rings that a store keeps beside
    with pytest.raises(MemoryLimitError, match=r"what would help: --kv-bits 8 \("):
        generate_result(
            model, processor, inputs, prompt_store=open_prompt_store(model, processor), **options
        )
    store = open_prompt_store(model, processor, kv_bits=8)
    results = [
        generate_result(model, processor, inputs, prompt_store=store, **options) for _ in range(2)
    ]
    assert [result.kv_bits for result in results] == [8, 8]
    assert results[1].cached_tokens > LENGTH
    assert results[0].tokens == results[1].tokens


def test_rows_of_a_batch_have_16_bits(demo: Any) -> None:
    model, processor = demo
    long, short = text(LENGTH), text(20)
    limit(model, needed(model, long, 16) - 1_000_000)
    batch = Batch(model, processor.tokenizer, eos_token_ids=())
    requests = [
        BatchRequest(key=key, inputs=inputs, max_tokens=2)
        for key, inputs in enumerate((long, short))
    ]
    done = {answer.key: answer for answer in batch.answer(requests)}
    failure = done[0]
    assert isinstance(failure, BatchFailure)
    assert "what would help: --kv-bits 8 (" in str(failure.error)
    assert not isinstance(done[1], BatchFailure)
