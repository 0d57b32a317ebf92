"""The token loop against the plain path."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME, inputs_of

from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.generation.generate import generate_step, prefill
from mlx_gemma4.generation.sampling import make_logits_processors, make_sampler
from mlx_gemma4.inputs import ModelInputs

CASE = CASES_BY_NAME["image_decode"]


@pytest.fixture(scope="module")
def model():
    return model_of(CASE)


@pytest.fixture
def short_model(model, monkeypatch):
    """The same network with a context of 50 positions."""
    text = dataclasses.replace(model.config.text_config, max_position_embeddings=50)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, text_config=text))
    return model


def greedy_by_plain_path(model, inputs, count):
    """Tokens chosen by running the whole prompt anew for each."""
    tokens = []
    for _ in range(count):
        ids = np.concatenate([inputs.input_ids, np.array(tokens, np.int32)])
        whole = ModelInputs(ids, inputs.spans, inputs.patches, inputs.patch_positions)
        tokens.append(int(np.array(model(whole, logits_to_keep=1))[0].argmax()))
    return tokens


def test_greedy_tokens_are_those_of_the_plain_path(model):
    inputs = inputs_of(CASE)
    expected = greedy_by_plain_path(model, inputs, 40)
    for prefill_step_size in (1, 7, 64, 2048):
        steps = generate_step(inputs, model, max_tokens=40, prefill_step_size=prefill_step_size)
        assert [token for token, _ in steps] == expected


def test_log_probabilities_are_normalised_and_belong_to_the_token(model):
    for token, logprobs in generate_step(inputs_of(CASE), model, max_tokens=5):
        assert logprobs.shape == (320,)
        assert abs(mx.exp(logprobs).sum().item() - 1) < 1e-5
        assert logprobs.argmax().item() == token


def test_a_prompt_cache_goes_on_where_it_ended(model):
    inputs = inputs_of(CASE)
    whole = [token for token, _ in generate_step(inputs, model, max_tokens=12)]
    cache = model.make_cache()
    prefill(inputs.slice(0, 90), model, cache)
    rest = generate_step(inputs.slice(90, len(inputs)), model, max_tokens=12, prompt_cache=cache)
    assert [token for token, _ in rest] == whole
    assert cache[0].offset == len(inputs) + 11  # the last token has not been read


def test_processors_see_the_prompt_and_every_token(model):
    seen = []

    def watch(tokens, logits):
        seen.append(np.array(tokens).tolist())
        return logits

    inputs = ModelInputs.from_ids([2, 5, 9])
    steps = generate_step(inputs, model, max_tokens=3, logits_processors=[watch])
    tokens = [token for token, _ in steps]
    assert seen == [[2, 5, 9], [2, 5, 9, *tokens[:1]], [2, 5, 9, *tokens[:2]]]


def test_suppressed_tokens_do_not_come_even_greedily(model):
    inputs = inputs_of(CASE)
    plain = [token for token, _ in generate_step(inputs, model, max_tokens=8)]
    processors = make_logits_processors(suppress_tokens=plain[:1])
    steps = generate_step(inputs, model, max_tokens=8, logits_processors=processors)
    assert plain[0] not in [token for token, _ in steps]


def test_a_seed_repeats_a_sampled_answer(model):
    def draw(seed):
        sampler = make_sampler(temp=1.0, top_k=64, top_p=0.95, seed=seed)
        steps = generate_step(inputs_of(CASE), model, max_tokens=10, sampler=sampler)
        return [token for token, _ in steps]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_progress_counts_positions(model):
    seen = []
    inputs = inputs_of(CASE)
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    next(generate_step(inputs, model, prefill_step_size=64, prompt_progress_callback=report))
    assert seen[0] == (0, len(inputs))
    assert seen[-1] == (len(inputs), len(inputs))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) >= 3


def test_generation_ends_where_the_context_ends(short_model):
    ids = np.random.default_rng(0).integers(3, 290, 44)
    assert len(list(generate_step(ModelInputs.from_ids(ids), short_model))) == 50 - 44


def test_a_prompt_longer_than_the_context_is_refused(short_model):
    with pytest.raises(InputError, match="51 tokens, the model's context 50"):
        next(generate_step(ModelInputs.from_ids(np.full(51, 5)), short_model))


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(InputError, match="empty"):
        next(generate_step(ModelInputs.from_ids([]), model))


def test_a_chunk_size_below_one_is_refused(model):
    with pytest.raises(OptionError, match="prefill_step_size is 0"):
        next(generate_step(ModelInputs.from_ids([2]), model, prefill_step_size=0))
