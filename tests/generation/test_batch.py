"""Many prompts at once: the answers are those of one by one."""

import gc
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from demo_prompts import demo_prompts, inputs_of

from mlx_gemma4.api import load
from mlx_gemma4.cache.ragged import join_row, keep_rows, make_ragged
from mlx_gemma4.errors import InputError, MemoryLimitError, OptionError
from mlx_gemma4.generation.batch import Batch
from mlx_gemma4.generation.batch_memory import BatchMemory
from mlx_gemma4.generation.batch_row import BatchFailure, BatchRequest
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.sampling import make_logits_processors, make_sampler
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import MemoryLimit

CONTEXT = 1024  # of the random model, whose own would take long to fill


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    model, processor = load(tiny_checkpoint, check_limits=False)
    text = replace(model.config.text_config, max_position_embeddings=CONTEXT)
    model.config = replace(model.config, text_config=text)
    return model, processor


@pytest.fixture(scope="module")
def demo():
    return load("demo", check_limits=False)


def text_of(rng, length):
    return ModelInputs.from_ids(rng.integers(100, 4000, length))


def alone(model, request, eos=()):
    """The tokens of an answer when nothing else is asked."""
    tokens = []
    steps = generate_step(
        request.inputs,
        model,
        max_tokens=request.max_tokens,
        sampler=request.sampler,
        logits_processors=request.logits_processors,
    )
    for token, _ in steps:
        tokens.append(token)
        if token in eos:
            break
    return tuple(tokens)


def answer_all(loaded, requests, eos=(), **options) -> tuple[dict[int, Any], Batch]:
    """Every answer or failure by its key, and the batch."""
    model, processor = loaded
    batch = Batch(model, processor.tokenizer, eos_token_ids=eos, **options)
    done = list(batch.answer(requests))
    assert sorted(one.key for one in done) == sorted(request.key for request in requests)
    return {one.key: one for one in done}, batch


def test_logits_are_those_of_single_runs(tiny, rng):
    """Rows of all lengths, beyond the window and before it, that come and go between steps."""
    model, _ = tiny
    lengths = (3, 140, 40, 300, 1)
    prompts = [text_of(rng, length) for length in lengths]
    singles = [model.make_cache() for _ in prompts]
    batch = make_ragged(model.make_cache())
    for prompt, cache in zip(prompts, singles, strict=True):
        own = model.make_cache()
        for each in (own, cache):
            model(prompt, each)
        join_row(batch, own)
    rows, ours, reference = list(range(len(prompts))), [], []
    for step in range(24):
        tokens = mx.array(rng.integers(100, 4000, (len(rows), 1)))
        ours.append(np.array(model.forward(tokens, [], (), batch)[:, 0]))
        for place, row in enumerate(rows):
            logits = model.forward(tokens[place : place + 1], [], (), singles[row])
            reference.append(np.array(logits[:, 0]))
        if step in (8, 16):
            del rows[1]
            keep_rows(batch, [0, 2, 3, 4][: len(rows)])
    difference(np.concatenate(ours), np.concatenate(reference)).assert_within(2e-5)


@pytest.fixture(scope="module")
def demo_answers(demo):
    """Requests for pictures, sounds, clips, and text, and their tokens one by one."""
    model, processor = demo
    requests = [
        BatchRequest(key=index, inputs=inputs_of(processor, record), max_tokens=40)
        for index, record in enumerate(demo_prompts()[::4])
    ]
    eos = model.generation_config.eos_token_ids
    return requests, [alone(model, request, eos) for request in requests]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_greedy_ids_are_those_of_one_by_one(demo, demo_answers, batch_size):
    requests, expected = demo_answers
    assert any(request.inputs.spans for request in requests)
    eos = demo[0].generation_config.eos_token_ids
    done, batch = answer_all(demo, requests, eos, batch_size=batch_size)
    assert [done[request.key].tokens for request in requests] == expected
    assert batch.prompt_tokens == sum(len(request.inputs) for request in requests)
    assert batch.generation_tokens == sum(map(len, expected))
    assert (batch.most_rows, batch.is_short_of_memory) == (batch_size, False)


def test_each_row_has_its_own_sampler_and_processors(tiny, rng):
    """Draws with a seed do not depend on what else is asked."""
    model, _ = tiny

    def new_requests():
        return [
            BatchRequest(
                key=key,
                inputs=ModelInputs.from_ids(np.arange(200, 210 + key)),
                sampler=make_sampler(temp=1.0, top_k=50, seed=key) if key % 3 else None,
                logits_processors=make_logits_processors(
                    repetition_penalty=1.3 if key % 2 else None, suppress_tokens=(7, 8)
                ),
                max_tokens=6 + key,
            )
            for key in range(6)
        ]

    done, _ = answer_all(tiny, new_requests(), batch_size=4)
    for request in new_requests():
        assert done[request.key].tokens == alone(model, request)


@contextmanager
def least_memory(model, is_enough):
    """Let a model have as little memory as is enough for a batch."""
    gc.collect()
    taken = max(model.nbytes, mx.get_active_memory())
    try:
        for free in range(0, 64 << 20, 1 << 16):
            model.memory_limit = MemoryLimit(taken + free, "this test can hold")
            if is_enough(BatchMemory(model)):
                break
        yield BatchMemory(model)
    finally:
        model.memory_limit = None


def test_a_row_without_memory_for_its_next_position_comes_again(tiny, rng, monkeypatch):
    """There is memory for two rows of 256 positions: a third waits, and past these one leaves."""
    model, _ = tiny
    requests = [
        BatchRequest(key=key, inputs=text_of(rng, length), max_tokens=max_tokens)
        for key, (length, max_tokens) in enumerate(((240, 40), (100, 60), (90, 4)))
    ]
    monkeypatch.setattr("mlx_gemma4.generation.batch._RESERVE", 1)
    second = requests[1].inputs
    with least_memory(model, lambda memory: memory.can_join(2, 256, second)) as memory:
        assert memory.fits(2, 256)
        assert not memory.fits(2, 257)
        assert not memory.can_join(3, 256, requests[2].inputs)
        done, batch = answer_all(tiny, requests, batch_size=4)
    for request in requests:
        assert done[request.key].tokens == alone(model, request)
    assert (batch.is_short_of_memory, batch.most_rows) == (True, 2)
    assert batch.prompt_tokens > sum(len(request.inputs) for request in requests)


def test_an_answer_ends_where_memory_does(tiny, rng):
    """A prompt too long for it is an error, and the next one is answered."""
    model, _ = tiny
    requests = [
        BatchRequest(key=0, inputs=text_of(rng, 20)),
        BatchRequest(key=1, inputs=text_of(rng, 1000)),
        BatchRequest(key=2, inputs=text_of(rng, 20), max_tokens=3),
    ]
    with least_memory(model, lambda memory: memory.fits(1, 256)):
        done, _ = answer_all(tiny, requests)
    assert done[0].finish_reason == "length"
    assert done[0].notes == ("the answer ends where the memory for one conversation does",)
    assert len(done[0].tokens) == 256 - 20 + 1  # the last one need not be read
    assert isinstance(done[1].error, MemoryLimitError)
    assert (len(done[2].tokens), done[2].notes) == (3, ())


def test_a_prompt_that_cannot_be_honoured_leaves_the_others_alone(tiny, rng):
    model, _ = tiny
    error = InputError("no such file")
    requests = [
        BatchRequest(key=0, inputs=text_of(rng, 5), max_tokens=4),
        BatchRequest(key=1, inputs=text_of(rng, CONTEXT + 1), max_tokens=4),
        BatchFailure(key=2, error=error),
        BatchRequest(key=3, inputs=ModelInputs.from_ids([]), max_tokens=4),
        BatchRequest(key=4, inputs=text_of(rng, 7), max_tokens=4, stop=[""]),
        BatchRequest(key=5, inputs=text_of(rng, 9), max_tokens=4),
    ]
    done, _ = answer_all(tiny, requests, batch_size=3)
    assert done[2].error is error
    assert "the model's context" in str(done[1].error)
    assert "empty" in str(done[3].error)
    assert "a stop string is empty" in str(done[4].error)
    for key in (0, 5):
        assert done[key].tokens == alone(model, requests[key])


@pytest.mark.parametrize("max_tokens", [0, 1, 2])
def test_short_answers(tiny, rng, max_tokens):
    model, _ = tiny
    requests = [
        BatchRequest(key=key, inputs=text_of(rng, 4 + key), max_tokens=max_tokens)
        for key in range(5)
    ]
    done, _ = answer_all(tiny, requests, batch_size=2)
    for request in requests:
        assert done[request.key].tokens == alone(model, request)
        assert done[request.key].finish_reason == "length"


def test_an_answer_ends_with_its_context(tiny, rng):
    requests = [BatchRequest(key=0, inputs=text_of(rng, CONTEXT - 3))]
    done, _ = answer_all(tiny, requests)
    assert len(done[0].tokens) == 3


def test_requests_are_taken_when_there_is_room(tiny, rng):
    taken = []

    def requests():
        for key in range(6):
            taken.append(key)
            yield BatchRequest(key=key, inputs=text_of(rng, 5), max_tokens=3)

    model, processor = tiny
    batch = Batch(model, processor.tokenizer, eos_token_ids=(), batch_size=2)
    answers = batch.answer(requests())
    next(answers)
    assert len(taken) == 2
    assert len(list(answers)) == 5


def test_a_batch_needs_a_row(tiny):
    model, processor = tiny
    with pytest.raises(OptionError, match="batch_size is 0; allowed is 1 or more"):
        Batch(model, processor.tokenizer, eos_token_ids=(), batch_size=0)
