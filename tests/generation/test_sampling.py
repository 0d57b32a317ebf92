"""Samplers and processors against mlx-lm's, on the same logits."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.sampling import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
    make_sampler,
)

sample_utils = pytest.importorskip("mlx_lm.sample_utils")
VOCAB = 500


def logprobs_of(seed, scale=3.0):
    logits = mx.array(np.random.default_rng(seed).normal(0, scale, (1, VOCAB)).astype(np.float32))
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        (apply_top_k, "apply_top_k", (7,)),
        (apply_top_p, "apply_top_p", (0.9,)),
        (apply_top_p, "apply_top_p", (0.05,)),
        (apply_min_p, "apply_min_p", (0.1,)),
        (apply_min_p, "apply_min_p", (0.9, 5)),
    ],
)
def test_a_filter_equals_mlx_lms(ours, theirs, arguments, seed):
    logprobs = logprobs_of(seed)
    expected = getattr(sample_utils, theirs)(logprobs, *arguments)
    assert mx.array_equal(ours(logprobs, *arguments), expected)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize(
    "options",
    [
        {"temp": 1.0, "top_k": 64, "top_p": 0.95},
        {"temp": 0.7, "top_k": 5},
        {"temp": 1.0, "top_p": 0.5},
        {"temp": 1.3, "min_p": 0.2, "top_k": 20},
        {"temp": 1.0, "min_p": 0.05, "top_p": 0.8, "top_k": 20},
        {"temp": 0.0, "top_k": 3},
    ],
)
def test_a_sampler_draws_from_mlx_lms_distribution(options, scale):
    """Both samplers see many copies of one distribution; the frequencies must be the same."""
    count = 4_000
    logprobs = logprobs_of(0, scale)
    copies = mx.repeat(logprobs, count, axis=0)
    ours = np.bincount(np.array(make_sampler(**options, seed=1)(copies)), minlength=VOCAB)
    mx.random.seed(2)
    theirs = np.bincount(np.array(sample_utils.make_sampler(**options)(copies)), minlength=VOCAB)
    # Two draws of one multinomial differ by five standard deviations about never.
    assert (abs(ours - theirs) <= 5 * np.sqrt(ours + theirs + 1)).all()
    if options.get("top_k"):
        assert (ours > 0).sum() <= options["top_k"]


def test_the_same_seed_draws_the_same_tokens():
    logprobs = mx.repeat(logprobs_of(3), 50, axis=0)

    def draws(seed):
        sampler = make_sampler(temp=1.0, top_k=64, seed=seed)
        return [np.array(sampler(logprobs)).tolist() for _ in range(3)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(7)[0] != draws(7)[1]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 2.0, "repetition_context_size": 3},
        {"logit_bias": {3: 4.0, 9: -2.0}},
    ],
)
def test_a_processor_equals_mlx_lms(options):
    tokens = mx.array([1, 5, 5, 9, 40, 41, 42])
    logits = logprobs_of(5) + 6
    (ours,) = make_logits_processors(**options)
    (theirs,) = sample_utils.make_logits_processors(**options)
    assert mx.array_equal(ours(tokens, logits * 1), theirs(tokens, logits * 1))


def test_suppressed_tokens_never_win():
    (process,) = make_logits_processors(suppress_tokens=[4, 7])
    logits = mx.zeros((1, 10)).at[:, 4].add(9.0).at[:, 7].add(8.0).at[:, 2].add(1.0)
    assert mx.argmax(process(mx.array([0]), logits)).item() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temp": -1.0}, "temperature is -1.0; allowed is 0"),
        ({"temp": float("nan")}, "temperature is nan"),
        ({"temp": 1.0, "top_p": 1.2}, "top_p is 1.2; allowed is 0 to 1"),
        ({"temp": 1.0, "top_k": -3}, "top_k is -3"),
        ({"temp": 1.0, "min_p": 2.0}, "min_p is 2.0"),
    ],
)
def test_a_value_out_of_range_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        make_sampler(**options)


def test_a_negative_repetition_penalty_is_refused():
    with pytest.raises(OptionError, match="repetition_penalty is -1"):
        make_logits_processors(repetition_penalty=-1)
