"""Prompts are read in the memory there is, refused before a position is read, and it is said."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4 import load
from mlx_gemma4.api import generate_result
from mlx_gemma4.errors import InputError, MemoryLimitError, OptionError
from mlx_gemma4.generation.generate import generate_step, prefill
from mlx_gemma4.generation.reading import count_tokens, memory_context, plan_reading
from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan
from mlx_gemma4.memory import WORKSPACE_BYTES, MemoryLimit, keep_resident, limit_buffers


@pytest.fixture
def demo():
    """Return the demo checkpoint, whose limit may be changed."""
    return load("demo", check_limits=False)


def limit_model(model, beyond_weights):
    mx.eval(model.parameters())
    held = max(model.nbytes, mx.get_active_memory())
    model.memory_limit = MemoryLimit(held + beyond_weights, "this machine can hold")


def text(length):
    return ModelInputs.from_ids(np.arange(length) % 200 + 100)


def test_a_short_prompt_is_read_at_once(demo):
    model, _ = demo
    plan = plan_reading(text(300), model, model.make_cache())
    assert plan.prefill_step_size == 2048
    assert plan.context_tokens == 300
    assert plan.weights_bytes >= model.nbytes
    assert plan.workspace_bytes < WORKSPACE_BYTES


def test_less_memory_means_shorter_chunks_and_the_same_answer(demo):
    model, processor = demo
    prompt = f"Say the third word: red blue green. {'and ' * 900}"
    inputs = processor(prompt)
    plain = generate_result(model, processor, inputs, max_tokens=8, temp=0)
    assert plain.prefill_step_size == 2048
    needed = plan_reading(inputs, model, model.make_cache(), max_tokens=8, prefill_step_size=256)
    limit_model(model, needed.cache_bytes + needed.workspace_bytes)
    result = generate_result(model, processor, inputs, max_tokens=8, temp=0)
    assert result.prefill_step_size <= 256
    assert f"read {result.prefill_step_size} tokens at a time" in result.notes[-1]
    assert result.tokens == plain.tokens


def test_a_chunk_size_of_the_users_is_kept(demo):
    model, _ = demo
    cache = model.make_cache()
    assert plan_reading(text(900), model, cache, prefill_step_size=77).prefill_step_size == 77
    needed = plan_reading(text(900), model, cache, prefill_step_size=128)
    limit_model(model, needed.cache_bytes + needed.workspace_bytes)
    with pytest.raises(MemoryLimitError, match=r"what would help: --prefill-step-size 128 "):
        plan_reading(text(900), model, cache, prefill_step_size=2048)


def test_a_long_picture_is_planned_whole(demo):
    model, _ = demo
    span = SoftTokenSpan(5, 700, Modality.IMAGE)
    patches, places = np.zeros((700, 6912), np.float32), np.zeros((700, 2), np.int32)
    picture = ModelInputs(np.full(900, 7, np.int32), (span,), patches, places)
    cache = model.make_cache()
    plans = [
        plan_reading(inputs, model, cache, prefill_step_size=64) for inputs in (picture, text(900))
    ]
    assert plans[0].workspace_bytes > 700 * 6912 * 8 > plans[1].workspace_bytes


def test_what_does_not_fit_is_refused_before_it_is_read(demo):
    model, _ = demo
    limit_model(model, 100_000)
    cache = model.make_cache()
    with pytest.raises(MemoryLimitError, match=r"for 800 tokens .* this machine can hold"):
        prefill(text(800), model, cache)
    assert cache[0].offset == 0
    with pytest.raises(MemoryLimitError, match="for 1,000 tokens"):
        next(generate_step(text(800), model, max_tokens=200))


def test_an_answer_without_end_ends_where_memory_does(demo):
    model, processor = demo
    inputs = text(40)
    fits = plan_reading(inputs, model, model.make_cache(), max_tokens=4)
    limit_model(model, fits.cache_bytes + fits.workspace_bytes)
    context = memory_context(model, model.make_cache())
    assert 44 <= context < model.config.text_config.max_position_embeddings

    def never_stop(tokens, logits):
        return mx.where(mx.arange(logits.shape[-1]) == 50, 0.0, -mx.inf)[None]

    result = generate_result(model, processor, inputs, temp=0, logits_processors=[never_stop])
    assert len(inputs) + len(result.tokens) <= context
    assert result.finish_reason == "length"
    assert "the answer ends where memory does" in result.notes[-1]


def test_with_a_number_of_tokens_the_context_is_the_bound(demo):
    model, _ = demo
    cache = model.make_cache()
    most = model.config.text_config.max_position_embeddings
    assert count_tokens(model, cache, 5) == 5
    assert count_tokens(model, cache, most + 1) == most
    assert count_tokens(model, cache, -1) == most


def test_other_models_and_conversations_count(demo):
    model, _ = demo
    mx.eval(model.parameters())
    before = plan_reading(text(10), model, model.make_cache()).weights_bytes
    other = mx.ones((1 << 20,))
    mx.eval(other)
    after = plan_reading(text(10), model, model.make_cache()).weights_bytes
    assert after - before == pytest.approx(other.nbytes, abs=100_000)


@pytest.mark.parametrize(
    ("inputs", "step", "error", "message"),
    [
        (text(0), None, InputError, "the prompt is empty"),
        (text(10), 0, OptionError, "prefill_step_size is 0"),
        (text(1 << 20), None, InputError, "the model's context"),
    ],
)
def test_bad_prompts_and_chunks_are_errors(demo, inputs, step, error, message):
    model, _ = demo
    with pytest.raises(error, match=message):
        plan_reading(inputs, model, model.make_cache(), prefill_step_size=step)


def test_load_sets_the_limit():
    assert load("demo")[0].memory_limit is not None
    assert load("demo", check_limits=False)[0].memory_limit is None


@pytest.mark.parametrize("device", [mx.gpu, mx.cpu])
def test_arrays_stay_resident_on_a_gpu(monkeypatch, device):
    limits = []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 12 << 30})
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    keep_resident()
    assert limits == ([12 << 30] if device == mx.gpu else [])


@pytest.mark.parametrize(("before", "after"), [(1 << 40, 1000), (10, 10)])
def test_few_freed_arrays_are_kept(before, after):
    usual = mx.set_cache_limit(before)
    try:
        limit_buffers(1000)
        assert mx.set_cache_limit(0) == after
    finally:
        mx.set_cache_limit(usual)


def test_load_bounds_what_is_kept_of_freed_arrays():
    usual = mx.set_cache_limit(1 << 40)
    try:
        load("demo")
        assert mx.set_cache_limit(0) == WORKSPACE_BYTES
    finally:
        mx.set_cache_limit(usual)
