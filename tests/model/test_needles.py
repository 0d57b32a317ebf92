"""Needles in a haystack, by a network that is made for it: only its global layer can find them.

Tokens are directions of the embedding.  A needle (k, v) is the sum of a key and a value; the
question k asks the global layer for the key, whose row holds the value too, and the output matrix
turns that into the answer v.  All other matrices are zero.
"""

import mlx.core as mx
import numpy as np
import pytest
from random_checkpoint import PLACEHOLDERS, Size, build_config

from mlx_gemma4.config import Config
from mlx_gemma4.generation.generate import generate_step, prefill
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.prompt_cache import PromptCacheStore
from mlx_gemma4.weights import expected_tensors

SIZE = Size(64, 64, 6, 2, 1, 32, 64, 32, 512)
NUM = 8  # keys, and values
KEY, VALUE, ANSWER, QUESTION, STRAW = 0, 8, 16, 24, 32  # where directions of the embedding begin
# Dimensions of a head that do not rotate.
KEY_DIM, VALUE_DIM = 8, 40
NEEDLES, ANSWERS, QUESTIONS, HAY = 100, 200, 220, 300  # where token ids begin
GLOBAL = "language_model.layers.5"


def make_weights(config, rng):
    weights = {
        name: np.full(shape, "norm" in name or "scalar" in name, np.float32)
        for name, shape in expected_tensors(config).items()
    }
    embed = weights["language_model.embed_tokens.weight"]
    for k in range(NUM):
        for v in range(NUM):
            embed[NEEDLES + NUM * k + v, [KEY + k, VALUE + v]] = 1
        embed[ANSWERS + k, ANSWER + k] = 1
        embed[QUESTIONS + k, QUESTION + k] = 0.1
    embed[HAY:, STRAW:] = rng.normal(size=embed[HAY:, STRAW:].shape)
    q, k, o = (weights[f"{GLOBAL}.self_attn.{name}_proj.weight"] for name in "qko")
    for n in range(NUM):
        q[[KEY_DIM + n, 64 + KEY_DIM + n], QUESTION + n] = 1
        k[KEY_DIM + n, KEY + n] = k[VALUE_DIM + n, VALUE + n] = 1
        o[ANSWER + n, VALUE_DIM + n] = 1
    return {name: mx.array(array) for name, array in weights.items()}


@pytest.fixture(scope="module")
def model():
    ids = {name: 5 + index for index, name in enumerate(PLACEHOLDERS)}
    config = Config.from_dict(build_config(SIZE, "float32", ids))
    return Gemma4.from_weights(config, make_weights(config, np.random.default_rng(0)))


def haystack(rng, length, needles):
    """Return ids with needles {k: v} at drawn places."""
    ids = rng.integers(HAY, 512, length)
    for place, (k, v) in zip(rng.choice(length, len(needles), False), needles.items(), strict=True):
        ids[place] = NEEDLES + NUM * k + v
    return ids


def answer(model, ids, cache=None):
    steps = generate_step(ModelInputs.from_ids(ids), model, max_tokens=1, prompt_cache=cache)
    return next(steps)[0] - ANSWERS


KINDS = [(16, "shared"), (16, "value"), (8, "shared"), (8, "value")]


@pytest.mark.parametrize(("kv_bits", "kv_rows"), KINDS)
def test_one_needle_wherever_it_is(model, rng, kv_bits, kv_rows):
    for place in (0, 2047, 2048, 2999):
        ids = haystack(rng, 3000, {})
        ids[place] = NEEDLES + NUM * 3 + 5
        cache = model.make_cache(kv_bits=kv_bits, kv_rows=kv_rows)
        assert answer(model, [*ids, QUESTIONS + 3], cache) == 5


@pytest.mark.parametrize(("kv_bits", "kv_rows"), KINDS)
def test_every_one_of_many_needles(model, rng, kv_bits, kv_rows):
    """A document is read once; each question goes on from there."""
    needles = dict(enumerate(rng.permutation(NUM).tolist()))
    cache = model.make_cache(kv_bits=kv_bits, kv_rows=kv_rows)
    mx.eval(
        prefill(
            ModelInputs.from_ids(haystack(rng, 20_000 if kv_bits == 16 else 6000, needles)),
            model,
            cache,
        )
    )
    for k, v in needles.items():
        assert answer(model, [QUESTIONS + k], cache) == v
        for layer_cache in cache:
            layer_cache.trim(1)


def test_nothing_but_the_global_layer_knows_it(model, rng):
    cache = model.make_cache()
    mx.eval(prefill(ModelInputs.from_ids(haystack(rng, 500, {2: 6})), model, cache))
    cache[5].state = [mx.zeros_like(array) for array in cache[5].state]
    assert answer(model, [QUESTIONS + 2], cache) != 6


def test_a_document_is_read_once_for_all_questions(model, rng):
    needles = {k: (3 * k + 1) % NUM for k in range(4)}
    ids = haystack(rng, 6000, needles)
    store = PromptCacheStore(model.make_cache)
    known = []
    for k, v in needles.items():
        inputs = ModelInputs.from_ids([*ids, QUESTIONS + k])
        with store.open(inputs) as reading:
            steps = generate_step(inputs, model, max_tokens=1, reading=reading)
            assert next(steps)[0] - ANSWERS == v
        known.append(reading.cached_tokens)
    assert known[0] == 0
    assert known[-1] == 6000
