"""Answers with drafts against answers without: the same ids, the same draws, the same cache."""

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME, inputs_of
from scripted_model import MarkovModel

from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.lookup import PromptLookup
from mlx_gemma4.generation.sampling import make_logits_processors, make_sampler
from mlx_gemma4.generation.speculation import check_speculate, speculative_generate_step
from mlx_gemma4.inputs import ModelInputs

CASE = CASES_BY_NAME["image_decode"]
pytestmark = pytest.mark.usefixtures("bold")
SAMPLED = {"temp": 0.6, "top_k": 20, "top_p": 0.9}


@pytest.fixture(scope="module")
def model():
    return model_of(CASE)


@pytest.fixture
def bold(monkeypatch):
    """Draft whenever a pair comes again, however often that failed: random texts need it."""
    monkeypatch.setattr("mlx_gemma4.generation.lookup.WARY_NGRAM", 2)


def repeating_prompt(seed, length=120):
    """A text of runs that come again, which a random network then goes on to repeat or not."""
    rng = np.random.default_rng(seed)
    runs = [rng.integers(3, 290, int(rng.integers(4, 20))) for _ in range(4)]
    ids = np.concatenate([runs[int(rng.integers(0, 4))] for _ in range(40)])
    return ModelInputs.from_ids(ids[:length])


def plain(model, inputs, **options):
    return [token for token, _ in generate_step(inputs, model, **options)]


def with_drafts(model, inputs, **options):
    lookup = PromptLookup(inputs)
    steps = list(speculative_generate_step(inputs, model, lookup, **options))
    assert sum(is_drafted for _, _, is_drafted in steps) == lookup.accepted_tokens
    return [token for token, _, _ in steps], lookup


def test_greedy_ids_are_the_same(model):
    """50 tokens go round the ring of 32 + 16 slots; a random network soon repeats itself."""
    accepted = drafted = 0
    prompts = [inputs_of(CASE), *(repeating_prompt(seed) for seed in range(7))]
    for inputs in prompts:
        tokens, lookup = with_drafts(model, inputs, max_tokens=50)
        assert tokens == plain(model, inputs, max_tokens=50)
        accepted += lookup.accepted_tokens
        drafted += lookup.draft_tokens
    assert 0 < accepted < drafted  # both ways were gone


def test_sampled_ids_are_the_same_with_a_seed(model):
    """The n-th draw of a seed is the same, however many draws came at a time or were taken back."""
    accepted = drafted = 0
    for seed in range(6):
        inputs = repeating_prompt(seed)
        tokens, lookup = with_drafts(
            model, inputs, max_tokens=50, sampler=make_sampler(**SAMPLED, seed=seed)
        )
        sampler = make_sampler(**SAMPLED, seed=seed)
        assert tokens == plain(model, inputs, max_tokens=50, sampler=sampler)
        accepted += lookup.accepted_tokens
        drafted += lookup.draft_tokens
    assert 0 < accepted < drafted


def test_processors_see_the_tokens_up_to_each_place(model):
    def favour(tokens, logits):
        """Favour what stood seven places before, unless the sum of all tokens forbids it."""
        logits = logits.at[:, tokens[-7:-6]].add(12)
        return logits.at[:, tokens.sum()[None] % 320].add(-mx.inf)

    total = 0
    for seed in range(4):
        inputs = repeating_prompt(seed)
        processors = [*make_logits_processors(suppress_tokens=[7, 9], repetition_penalty=1.05)]
        options: dict[str, Any] = {"max_tokens": 40, "logits_processors": [*processors, favour]}
        tokens, lookup = with_drafts(model, inputs, **options)
        assert tokens == plain(model, inputs, **options)
        assert not {7, 9} & set(tokens)
        total += lookup.draft_tokens
    assert total > 50


def test_log_probabilities_belong_to_the_place(model):
    inputs = repeating_prompt(3)
    expected = list(generate_step(inputs, model, max_tokens=40))
    steps = speculative_generate_step(inputs, model, PromptLookup(inputs), max_tokens=40)
    for (token, logprobs), (same, drafted, _) in zip(expected, steps, strict=True):
        assert token == same
        assert drafted.shape == logprobs.shape
        assert np.abs(np.array(drafted) - np.array(logprobs)).max() < 1e-3


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 21, 34])
def test_the_cache_ends_where_it_does_without_drafts(model, length):
    """Both when the limit ends an answer, and when the caller stops listening after any token."""
    inputs = repeating_prompt(5)
    for limit in (length, 40):
        ends = []
        for speculate in (False, True):
            cache = model.make_cache()
            lookup = PromptLookup(inputs)
            options: dict[str, Any] = {"max_tokens": limit, "prompt_cache": cache}
            steps = (
                speculative_generate_step(inputs, model, lookup, **options)
                if speculate
                else generate_step(inputs, model, **options)
            )
            for count, _ in enumerate(steps, start=1):
                if count == length:
                    break
            steps.close()
            assert {layer_cache.offset for layer_cache in cache} == {cache[0].offset}
            more = repeating_prompt(6, 9)
            ends.append((cache[0].offset, plain(model, more, max_tokens=8, prompt_cache=cache)))
        assert ends[0] == ends[1]


def test_a_reused_sampler_goes_on_as_it_does_without_drafts(model):
    def draws(speculate, length):
        sampler = make_sampler(**SAMPLED, seed=4)
        inputs = repeating_prompt(5)
        lookup = PromptLookup(inputs)
        steps = (
            speculative_generate_step(inputs, model, lookup, sampler=sampler)
            if speculate
            else generate_step(inputs, model, sampler=sampler)
        )
        for _ in range(length):
            next(steps)
        steps.close()
        return np.array(sampler(mx.zeros((8, 320)))).tolist()

    for length in (1, 4, 9, 17, 26):
        assert draws(True, length) == draws(False, length)


def test_an_answer_ends_where_the_context_ends(model, monkeypatch):
    text = dataclasses.replace(model.config.text_config, max_position_embeddings=150)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, text_config=text))
    inputs = repeating_prompt(2)
    cache = model.make_cache()
    tokens, lookup = with_drafts(model, inputs, prompt_cache=cache)
    assert len(tokens) == 150 - 120
    assert cache[0].offset == 149
    assert lookup.accepted_tokens > 0
    assert tokens == plain(model, inputs)
    assert with_drafts(model, inputs, max_tokens=0)[0] == []


def test_a_draft_takes_few_passes_and_no_pass_is_longer_than_the_ring_allows():
    table = np.full((50, 50), -20.0, np.float32)
    table[np.arange(50), (np.arange(50) + 1) % 50] = 20  # counts from 0 to 49 for ever
    counting = MarkovModel(table, 1000)
    inputs = ModelInputs.from_ids(np.arange(150) % 50)
    model: Any = counting
    tokens, lookup = with_drafts(model, inputs, max_tokens=200)
    assert tokens == [number % 50 for number in range(200)]
    assert max(counting.lengths) == 16
    assert lookup.draft_tokens == lookup.accepted_tokens
    assert len(counting.lengths) <= 200 / 16 + 3


def chi_square_bound(freedom, exponent=14.0):
    """The value that chi-square of so many degrees of freedom exceeds with at most e^-exponent.

    Source: Laurent and Massart, Adaptive estimation of a quadratic functional, 2000, lemma 1.
    """
    return freedom + 2 * np.sqrt(freedom * exponent) + 2 * exponent


@pytest.mark.parametrize(
    "options", [{"temp": 1.0}, {"temp": 0.7, "top_k": 4}, {"temp": 1.0, "top_p": 0.85}]
)
def test_draws_with_drafts_have_the_distribution_without(options):
    """A chain of known probabilities: what follows each pair is multinomial, drafted or not."""
    size, length = 5, 6000
    table = np.random.default_rng(1).normal(0, 1.2, (size, size)).astype(np.float32)
    logprobs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    kept = [row_distribution(row, **options) for row in logprobs]
    chain = MarkovModel(table, length + 10)
    model: Any = chain
    mx.random.seed(11)
    inputs = ModelInputs.from_ids([0, 1, 2])
    tokens, lookup = with_drafts(model, inputs, sampler=make_sampler(**options), max_tokens=length)
    # Of every kind there is plenty: accepted, refused, and drawn without a draft.
    assert length / 4 < lookup.accepted_tokens < 0.7 * length
    assert lookup.draft_tokens > 1.3 * lookup.accepted_tokens
    seen = np.zeros((size, size, size))
    np.add.at(seen, (tokens[:-2], tokens[1:-1], tokens[2:]), 1)
    statistic, freedom = 0.0, 0
    for a, b in np.ndindex(size, size):
        expected = kept[b] * seen[a, b].sum()
        assert not seen[a, b][kept[b] == 0].any()  # nothing that the filters drop
        if expected[kept[b] > 0].min() >= 5:  # too few for the approximation otherwise
            cells = kept[b] > 0
            statistic += ((seen[a, b] - expected)[cells] ** 2 / expected[cells]).sum()
            freedom += cells.sum() - 1
    assert freedom > 20
    assert statistic < chi_square_bound(freedom), (statistic, freedom)


def row_distribution(logprobs, temp=1.0, top_k=0, top_p=1.0):
    """Probabilities [V] that a sampler with these options draws from, by definition."""
    order = np.argsort(-logprobs)
    probabilities = np.exp(logprobs[order].astype(np.float64))
    before = np.cumsum(probabilities) - probabilities
    keep = before < top_p
    if top_k:
        keep[top_k:] = False
    weights = np.where(keep, np.exp(logprobs[order] / temp), 0)
    result = np.zeros_like(weights)
    result[order] = weights / weights.sum()
    return result


@pytest.mark.parametrize("speculate", ["", "draft", "Lookup"])
def test_an_unknown_kind_is_refused(speculate):
    with pytest.raises(OptionError, match=f'"{speculate}"; allowed are lookup and off'):
        check_speculate(speculate)
