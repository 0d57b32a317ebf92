"""Answers from every kind of global rows: exact from values alone, near enough from int8."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from demo_prompts import demo_prompts, inputs_of
from kernel_truth import exact
from random_checkpoint import PLACEHOLDERS, SIZES, build_config
from shared_truth import FORMATS

from mlx_gemma4 import load
from mlx_gemma4.cache import SlidingCache, trim_prompt_cache
from mlx_gemma4.config import Config
from mlx_gemma4.errors import OptionError
from mlx_gemma4.evaluation.divergence import Divergence
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.lookup import PromptLookup
from mlx_gemma4.generation.speculation import speculative_generate_step
from mlx_gemma4.kernels import registry, shared_decode
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.shared_rows import RowFormat, SharedRows
from mlx_gemma4.model.gemma4 import Gemma4

KINDS = {
    name: {"kv_bits": bits, "kv_rows": "shared" if has_keys else "value"}
    for name, (bits, has_keys) in FORMATS.items()
}
of_kinds = pytest.mark.parametrize("kind", KINDS)
of_int8 = pytest.mark.parametrize("kind", [name for name in KINDS if name.endswith("int8")])


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="float32")


def answer(model, inputs, kind, count, **options):
    cache = model.make_cache(**KINDS[kind])
    steps = generate_step(inputs, model, max_tokens=count, prompt_cache=cache, **options)
    return [token for token, _ in steps]


def test_what_is_neither_is_refused(demo):
    model, _ = demo
    with pytest.raises(OptionError, match="kv_bits is 4; allowed are 16 and 8"):
        model.make_cache(kv_bits=4)
    with pytest.raises(OptionError, match='kv_rows is "key"; allowed are shared and value'):
        model.make_cache(kv_rows="key")


@of_kinds
def test_a_model_makes_the_caches_it_was_told_to(demo, monkeypatch, kind):
    model, _ = demo
    for name, value in KINDS[kind].items():
        monkeypatch.setattr(model, name, value)
    bits, has_keys = FORMATS[kind]
    *rings, shared = model.make_cache()
    assert shared.row_format == RowFormat(bits, has_keys)
    assert all(isinstance(ring, SlidingCache) for ring in rings)


def test_values_alone_say_the_same_to_the_last_bit(demo):
    model, processor = demo
    inputs = processor("Write backwards: " + " ".join(map(str, range(60))))
    logits = []
    for kind in ("shared_decode", "value_decode"):
        cache = model.make_cache(**KINDS[kind])
        chunks = [model(inputs.slice(0, 70), cache), model(inputs.slice(70, len(inputs)), cache)]
        logits.append(np.concatenate([np.array(chunk) for chunk in chunks]))
    assert (logits[0] == logits[1]).all()


@of_int8
def test_int8_answers_as_exact_rows_do(demo, kind):
    model, processor = demo
    divergences = []
    for record in demo_prompts()[::6]:
        inputs = inputs_of(processor, record)
        plain = answer(model, inputs, "shared_decode", 12)
        assert answer(model, inputs, kind, 12) == plain
        exact_logits, logits = (
            np.array(model(inputs, model.make_cache(**KINDS[name])))
            for name in ("shared_decode", kind)
        )
        divergence = Divergence(np.zeros(len(inputs), np.int64))
        divergence.add(slice(None), 0, exact_logits, logits)
        divergences.append(divergence.kl)
    kl = np.concatenate(divergences)
    assert 0 < kl.mean() < 2e-4
    assert kl.max() < 0.03


@of_kinds
def test_undoing_and_reading_again_is_reading_once(demo, kind):
    model, processor = demo
    inputs = processor("Count to forty: " + " ".join(map(str, range(30))))
    straight, undone = model.make_cache(**KINDS[kind]), model.make_cache(**KINDS[kind])
    expected = np.array(model(inputs, straight, logits_to_keep=1))
    first = inputs.slice(0, len(inputs) - 3)
    model(first, undone)
    model.forward(mx.array([[5, 6, 7, 8]]), [], (), undone)
    trim_prompt_cache(undone, 4)
    got = np.array(model(inputs.slice(len(first), len(inputs)), undone, logits_to_keep=1))
    difference(got, expected).assert_within(2e-5 if KINDS[kind]["kv_bits"] == 16 else 5e-3)


@of_int8
def test_drafts_change_nothing(demo, kind):
    model, processor = demo
    inputs = processor("Repeat: " + "red green blue " * 12)
    plain = answer(model, inputs, kind, 24)
    lookup = PromptLookup(inputs)
    steps = speculative_generate_step(
        inputs, model, lookup, max_tokens=24, prompt_cache=model.make_cache(**KINDS[kind])
    )
    assert [token for token, _, _ in steps] == plain


@of_kinds
def test_the_network_on_its_kernels(demo, metal_sim, kind):
    metal_sim.mode = "run"
    model, processor = demo
    inputs = processor("What is the capital of France?")
    with registry.forced():
        plain = answer(model, inputs, kind, 6)
    with registry.forced(kind):
        assert answer(model, inputs, kind, 6) == plain
    launched = Counter(launch.name for launch in metal_sim.launches)
    assert launched["shared_decode"] == 6  # one global layer, which keeps the last position alone


@of_kinds
def test_rows_from_kernels_say_the_same(demo, metal_sim, kind):
    """All kernels: rows come out as they are kept, one launch a layer and a pass."""
    metal_sim.mode = "run"
    model, processor = demo
    inputs = processor("Write backwards: lemon music tiger")
    with registry.forced():
        plain = answer(model, inputs, kind, 8)
    assert metal_sim.launches == []
    with registry.forced(*registry.KERNELS):
        assert answer(model, inputs, kind, 8) == plain
    launched = Counter(launch.name for launch in metal_sim.launches)
    layers = model.config.text_config.num_hidden_layers
    assert launched["qkv_norm_rope"] == 8 * layers
    assert launched["shared_decode"] == 8


@of_kinds
def test_needles_are_found(rng, kind):
    """Eight rows of 20,000 that a query each asks for; every answer is its row's own value."""
    bits, has_keys = FORMATS[kind]
    context, needles = 20_000, np.sort(rng.choice(20_000, 8, replace=False))
    n = rng.standard_normal((1, 1, context, 256)).astype(np.float32)
    k_weight, periods = mx.linspace(0.5, 2.0, 128), 10_000.0 ** (mx.arange(0, 128, 2) / 256)
    values = mx.array(n)
    turned = mx.fast.rope(
        values[..., 128:] * k_weight,
        128,
        traditional=False,
        base=None,
        scale=1.0,
        offset=0,
        freqs=periods,
    )
    shared = mx.concatenate([turned, values], axis=-1)
    buffer, *scales = RowFormat(bits, has_keys).pack(shared, 128)
    rows = SharedRows(buffer, scales[0] if scales else None, context)
    keys = mx.concatenate([turned, values[..., :128]], axis=-1)
    q = 0.1 * keys[:, :, mx.array(needles.astype(np.int32))]
    hi = np.full((1, 8), context - 1, np.int32)
    mask = IntervalMask(0 * hi, hi, np.arange(context, dtype=np.int32)[None])
    out = exact(shared_decode.define(q, rows, mask, k_weight, periods, block_keys=4096)[0])[0, 0]
    found = (out @ n[0, 0].T).argmax(axis=-1)
    assert found.tolist() == needles.tolist()
    assert abs(out - n[0, 0, needles]).max() < (0.02 if bits == 16 else 0.06)


@pytest.mark.parametrize(("kind", "gib"), [*zip(KINDS, [2.82, 1.58, 2.32, 1.32], strict=True)])
def test_the_12b_at_its_whole_context(kind, gib):
    """40 rings and eight global layers in bfloat16; 4.32 GiB with separate keys and values."""
    ids = dict.fromkeys([*PLACEHOLDERS], 5)
    config = Config.from_dict(build_config(SIZES["real"], "bfloat16", ids))
    context = 262_144
    cache = Gemma4(config).make_cache(**KINDS[kind], context_tokens=context)
    for layer_cache in cache:
        # Never computed: what is allocated is known.
        if isinstance(layer_cache, SlidingCache):
            layer_cache.update_and_fetch(mx.zeros((1, 8, 2048, 512), mx.bfloat16))
        else:
            rows = mx.zeros((1, 1, context, 640), mx.bfloat16)
            layer_cache.update_and_fetch(layer_cache.row_format.pack(rows, 128))
    assert sum(layer_cache.nbytes for layer_cache in cache) / 2**30 == pytest.approx(gib, abs=0.005)
