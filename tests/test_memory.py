"""Memory: the sums agree with what caches allocate, and a refusal says what would fit."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from random_checkpoint import SIZES, Size, build_config

import mlx_gemma4.cache.shared
import mlx_gemma4.cache.sliding
import mlx_gemma4.kernels.interval_attention
import mlx_gemma4.kernels.online_attention
import mlx_gemma4.model.gemma4
from mlx_gemma4.cache import SlidingCache
from mlx_gemma4.config import Config, QuantizationSettings, TextConfig
from mlx_gemma4.errors import MemoryLimitError
from mlx_gemma4.generation.generate import prefill
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import (
    PREFILL_STEPS,
    WORKSPACE_BYTES,
    MemoryLimit,
    Reading,
    arrays,
    bounded,
    cache_bytes,
    check_memory,
    choose_reading,
    format_bytes,
    longest_context,
    mac_limit,
    machine,
    machine_limit,
    parameter_bytes,
    plan_memory,
    workspace_bytes,
)
from mlx_gemma4.model.gemma4 import Gemma4, KVRows

MAC = MemoryLimit(12_713_115_648, "the GPU of this Mac can use")  # of one with 16 GB
WEIGHTS_BYTES = 23_919_460_448  # of the 12B in bfloat16


def config_of(size: Size) -> Config:
    ids = {"image_token_id": 5, "audio_token_id": 6, "video_token_id": 7, "boi_token_id": 8}
    ids |= {"eoi_token_id": 9, "boa_token_id": 10, "eoa_token_index": 11}
    return Config.from_dict(build_config(size, "bfloat16", ids))


@pytest.fixture(scope="module")
def text() -> TextConfig:
    """Return the decoder of the 12B."""
    return config_of(SIZES["real"]).text_config


def test_the_12b_needs_320_kib_a_token_in_sliding_layers_and_10_in_global_ones(
    text: TextConfig,
) -> None:
    assert cache_bytes(text, 256, 2) == 256 * (320 + 10) * 1024
    assert cache_bytes(text, 65_536, 2) - cache_bytes(text, 32_768, 2) == 32_768 * 10 * 1024
    assert cache_bytes(text, 262_144, 2) == (1040 * 320 + 262_144 * 10) * 1024
    assert cache_bytes(text, 4096, 4) == 2 * cache_bytes(text, 4096, 2)


@pytest.mark.parametrize("num_tokens", [1, 31, 256, 257, 1000])
@pytest.mark.parametrize("kv_rows", ["shared", "value"])
@pytest.mark.parametrize("kv_bits", [16, 8])
def test_cache_bytes_are_those_that_caches_allocate(
    num_tokens: int, kv_bits: int, kv_rows: KVRows
) -> None:
    config = config_of(Size(64, 128, 6, 4, 2, 64, 128, 300, 1024))
    text = config.text_config
    cache = Gemma4(config).make_cache(kv_bits=kv_bits, kv_rows=kv_rows)
    for index, layer_cache in enumerate(cache):
        dims = 2 * 64 if isinstance(layer_cache, SlidingCache) else 128 + 32
        rows = mx.zeros((1, text.num_key_value_heads_of(index), num_tokens, dims), mx.bfloat16)
        if isinstance(layer_cache, SlidingCache):
            layer_cache.update_and_fetch(rows)
        else:
            layer_cache.update_and_fetch(layer_cache.row_format.pack(rows, 32))
    allocated = sum(layer_cache.nbytes for layer_cache in cache)
    assert cache_bytes(text, num_tokens, 2, kv_bits, kv_rows) == allocated


def test_constants_are_those_of_the_modules_that_allocate() -> None:
    assert arrays.CACHE_GROWTH == mlx_gemma4.cache.sliding.GROWTH
    assert arrays.CACHE_GROWTH == mlx_gemma4.cache.shared.GROWTH
    assert arrays._RING_SLACK == mlx_gemma4.model.gemma4.RING_SLACK
    attention = mlx_gemma4.kernels.interval_attention
    assert arrays._SCORE_BLOCK_BYTES == attention.SCORE_BLOCK_BYTES
    assert arrays._MIN_BLOCK_QUERIES == attention.MIN_BLOCK_QUERIES
    assert arrays._INTERVALS_PER_BLOCK == attention._INTERVALS_PER_BLOCK
    assert arrays._UNPACKED_BYTES == mlx_gemma4.kernels.online_attention.BLOCK_BYTES
    assert arrays._UNPACKED_QUERIES == mlx_gemma4.kernels.online_attention.BLOCK_QUERIES
    vision = config_of(SIZES["real"]).vision_config
    assert vision is not None
    assert vision.patch_dim == arrays._PATCH_DIM


def test_parameters_are_packed_with_their_scales() -> None:
    assert parameter_bytes((8, 128), None, 2) == 2048
    assert parameter_bytes((8, 128), QuantizationSettings(64, 4), 2) == 512 + 16 * 2 * 2
    assert parameter_bytes((8, 128), QuantizationSettings(64, 4), 4) == 512 + 16 * 2 * 4
    assert parameter_bytes((8, 128), QuantizationSettings(32, 4, "mxfp4"), 2) == 512 + 32


def test_workspace_grows_with_chunk_context_and_pictures(text: TextConfig) -> None:
    def work(step: int, context: int, picture: int = 0) -> int:
        reading = Reading(step, picture, 3 * picture, is_cpu=False)
        return workspace_bytes(text, context, 2, reading)

    sizes = [work(step, 32_768) for step in PREFILL_STEPS]
    assert sizes == sorted(sizes, reverse=True)
    assert work(2048, 512) < work(2048, 2048) < work(2048, 32_768) < work(2048, 262_144)
    # A picture longer than the chunk is a chunk of its own.
    assert work(64, 32_768, 1120) > work(1024, 32_768)


@pytest.mark.parametrize(("kv_bits", "kv_rows"), [(16, "shared"), (16, "value"), (8, "shared")])
def test_on_the_cpu_a_long_context_takes_no_more(
    text: TextConfig, kv_bits: int, kv_rows: str
) -> None:
    reading = Reading(64, is_cpu=True, kv_bits=kv_bits, kv_rows=kv_rows)
    sizes = [workspace_bytes(text, context, 2, reading) for context in (16_384, 262_144)]
    assert sizes[0] == sizes[1] < WORKSPACE_BYTES


def test_a_conversation_that_goes_on_may_be_copied(text: TextConfig) -> None:
    fresh, copied = (Reading(64, is_cpu=False, copied_tokens=n) for n in (0, 200_000))
    more = workspace_bytes(text, 262_144, 2, copied) - workspace_bytes(text, 262_144, 2, fresh)
    assert more == 200_000 * 640 * 2


@pytest.mark.parametrize(("tokens", "step"), [(64, 2048), (600, 256), (900, 2048)])
@pytest.mark.parametrize("heads", [2, 8])
def test_a_bounded_prompt_takes_what_was_planned(tokens: int, step: int, heads: int) -> None:
    # Two global layers: the last one attends from the last position alone.
    config = config_of(Size(128, 512, 12, heads, 2, 64, 128, 300, 1024))
    model = Gemma4(config)
    mx.eval(model.parameters())
    mx.clear_cache()
    weights_bytes = mx.get_active_memory()
    plan = plan_memory(config.text_config, weights_bytes, tokens, 4, Reading(step))
    inputs = ModelInputs.from_ids([7 + index % 900 for index in range(tokens)])
    mx.reset_peak_memory()
    mx.eval(prefill(inputs, model, model.make_cache(), prefill_step_size=step))
    # Weights apart, which would hide what is off.
    planned, measured = plan.total_bytes - weights_bytes, mx.get_peak_memory() - weights_bytes
    assert 0.75 * planned < measured < 1.1 * planned


def test_more_layers_need_no_more_while_a_prompt_is_read() -> None:
    """But for their caches: what a layer made is gone before the next but one begins."""
    beyond_cache: list[int] = []
    inputs = ModelInputs.from_ids([7 + index % 900 for index in range(512)])
    for layers in (12, 48):
        model = Gemma4(config_of(Size(64, 64, layers, 2, 2, 64, 64, 64, 1024)))
        mx.eval(model.parameters())
        cache = model.make_cache()
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(prefill(inputs, model, cache))
        allocated = sum(layer_cache.nbytes for layer_cache in cache)
        beyond_cache.append(mx.get_peak_memory() - before - allocated)
    assert beyond_cache[1] < 1.2 * beyond_cache[0]


def test_a_bound_is_lifted_whatever_happens() -> None:
    plan = plan_memory(config_of(SIZES["tiny"]).text_config, 10**6, 100, 4)
    bounds: list[int] = []

    def fail() -> None:
        bounds.append(mx.set_memory_limit(10**12))
        raise KeyError

    before = mx.set_memory_limit(10**12)
    try:
        with pytest.raises(KeyError), bounded(plan):
            fail()
        bounds.append(mx.set_memory_limit(10**12))
    finally:
        mx.set_memory_limit(before)
    assert bounds == [plan.total_bytes - plan.largest_bytes, 10**12]


def test_a_gpu_keeps_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_memory(config_of(SIZES["tiny"]).text_config, 10**6, 100, 4)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    before = mx.set_memory_limit(10**12)
    try:
        with bounded(plan):
            assert mx.set_memory_limit(10**12) == 10**12
    finally:
        mx.set_memory_limit(before)


def test_chunks_are_as_long_as_memory_allows(text: TextConfig) -> None:
    def chosen(context: int, limit_bytes: int, **options: Any) -> int:
        reading = choose_reading(
            text,
            6_700_000_000,
            context,
            2,
            limit_bytes=limit_bytes,
            reading=Reading(is_cpu=False),
            **options,
        )
        return reading.prefill_step_size

    assert chosen(4096, 10**11) == 2048
    assert chosen(4096, 10**11, workspace_limit_bytes=200_000_000) < 2048
    # What weights and cache leave is less than the bound.
    fixed = 6_700_000_000 + cache_bytes(text, 4096, 2)
    tight = fixed + workspace_bytes(text, 4096, 2, Reading(512, is_cpu=False))
    assert chosen(4096, tight) == 512
    assert chosen(4096, tight - 1) < 512
    # Where nothing makes it fit, chunks are what they would be with more memory.
    assert chosen(4096, 10**9) == 2048


def test_rows_become_int8_where_no_chunk_size_makes_16_bits_fit(text: TextConfig) -> None:
    sizes = text, 6_700_000_000, 131_072, 2

    def least(kv_bits: int) -> int:
        readings = [Reading(step, is_cpu=False, kv_bits=kv_bits) for step in PREFILL_STEPS]
        return min(plan_memory(*sizes, reading).total_bytes for reading in readings)

    def chosen(limit_bytes: int, **options: Any) -> tuple[int, int]:
        options = {"reading": Reading(is_cpu=False), "may_compact": True} | options
        reading = choose_reading(*sizes, limit_bytes=limit_bytes, **options)
        return reading.kv_bits, reading.prefill_step_size

    assert least(8) < least(16)
    assert chosen(10**11)[0] == 16
    assert chosen(least(16)) == (16, 64)
    assert chosen(least(16) - 1)[0] == 8
    assert chosen(least(16) - 1)[1] > 64  # what is saved is there to work in
    assert chosen(least(8)) == (8, 64)
    assert chosen(least(16) - 1, may_compact=False)[0] == 16
    assert chosen(least(16), may_shorten=False) == (8, 2048)
    # Where neither fits, it is what needs less.
    assert chosen(least(8) - 1)[0] == 8


def test_a_plan_says_which_bits_it_has(text: TextConfig) -> None:
    plans = [plan_memory(text, 10**9, 4096, 2, Reading(kv_bits=bits)) for bits in (16, 8)]
    assert [plan.kv_bits for plan in plans] == [16, 8]
    assert ["for 4,096 tokens in int8 + " in str(plan) for plan in plans] == [False, True]


def test_a_drafter_counts(text: TextConfig) -> None:
    plan = plan_memory(text, 10**9, 4096, 2, drafter_bytes=400_000_000)
    without = plan_memory(text, 10**9, 4096, 2)
    assert plan.total_bytes == without.total_bytes + 400_000_000
    assert "drafter 400.0 MB" in str(plan)
    assert "drafter" not in str(without)


def test_shorter_chunks_are_a_way_out(text: TextConfig) -> None:
    needed = plan_memory(text, 6_700_000_000, 8192, 2, Reading(512, is_cpu=False)).total_bytes
    with pytest.raises(MemoryLimitError, match=r"--prefill-step-size 512 \("):
        check_memory(
            text,
            6_700_000_000,
            8192,
            item_bytes=2,
            limit=MemoryLimit(needed, "this machine can hold"),
            reading=Reading(2048, is_cpu=False),
        )


def test_what_fits_is_returned(text: TextConfig) -> None:
    plan = check_memory(text, 6_700_000_000, 8192, item_bytes=2, limit=MAC)
    assert plan == plan_memory(text, 6_700_000_000, 8192, 2)
    assert plan.total_bytes < MAC.limit_bytes


def test_a_refusal_has_the_sum_and_the_way_out(text: TextConfig) -> None:
    quantized = {"--quantize 4": 6_730_000_000, "--quantize 8": 12_710_000_000}
    with pytest.raises(MemoryLimitError) as caught:
        check_memory(text, WEIGHTS_BYTES, 4096, item_bytes=2, limit=MAC, smaller=quantized)
    message = str(caught.value)
    plan = plan_memory(text, WEIGHTS_BYTES, 4096, 2)
    assert message.startswith(f"this needs {format_bytes(plan.total_bytes)} (weights 23.9 GB + ")
    assert "for 4,096 tokens" in message
    assert "the GPU of this Mac can use 12.7 GB" in message
    fits = plan_memory(text, quantized["--quantize 4"], 4096, 2).total_bytes
    assert f"--quantize 4 ({format_bytes(fits)} in all)" in message
    assert "--quantize 8" not in message  # would not fit either
    assert "a context of" not in message
    assert "a smaller checkpoint" in message


def test_smaller_rows_are_a_way_out(text: TextConfig) -> None:
    compact = plan_memory(text, 10**9, 131_072, 2, Reading(256, is_cpu=False, kv_bits=8))
    limit = MemoryLimit(compact.total_bytes, "this machine can hold")
    with pytest.raises(MemoryLimitError, match=r"what would help: --kv-bits 8 \("):
        check_memory(
            text, 10**9, 131_072, item_bytes=2, limit=limit, reading=Reading(256, is_cpu=False)
        )


def test_rows_that_are_there_already_cannot_become_smaller(text: TextConfig) -> None:
    reading = Reading(256, is_cpu=False, copied_tokens=100_000)
    compact = plan_memory(text, 10**9, 131_072, 2, Reading(256, is_cpu=False, kv_bits=8))
    limit = MemoryLimit(compact.total_bytes, "this machine can hold")
    with pytest.raises(MemoryLimitError) as caught:
        check_memory(
            text, 10**9, 131_072, item_bytes=2, limit=limit, reading=reading, has_rows=True
        )
    in_all = format_bytes(compact.total_bytes)
    anew = f"what would help: the conversation read anew with --kv-bits 8 ({in_all} in all)"
    assert anew in str(caught.value)


def test_other_ways_may_have_shorter_chunks(text: TextConfig) -> None:
    readings = [Reading(step, is_cpu=False, kv_bits=8) for step in (2048, 128)]
    long, short = (plan_memory(text, 10**9, 131_072, 2, reading) for reading in readings)
    limit = MemoryLimit(short.total_bytes, "this machine can hold")
    assert long.total_bytes > limit.limit_bytes
    found = []
    for may_shorten in (True, False):
        with pytest.raises(MemoryLimitError) as caught:
            check_memory(
                text,
                10**9,
                131_072,
                item_bytes=2,
                limit=limit,
                reading=Reading(is_cpu=False),
                may_shorten=may_shorten,
            )
        found.append("--kv-bits 8" in str(caught.value))
    assert found == [True, False]


@pytest.mark.parametrize(
    ("kv_bits", "kv_rows", "kib_a_token", "total_gib"),
    [
        (16, "shared", 10, 2.82),
        (16, "value", 8, 2.32),
        (8, "shared", 5.03, 1.57),
        (8, "value", 4.02, 1.32),
    ],
)
def test_bytes_of_a_whole_context(
    text: TextConfig, kv_bits: int, kv_rows: str, kib_a_token: float, total_gib: float
) -> None:
    total = cache_bytes(text, 262_144, 2, kv_bits, kv_rows)
    a_token = (total - cache_bytes(text, 131_072, 2, kv_bits, kv_rows)) / 131_072
    assert a_token / 1024 == pytest.approx(kib_a_token, abs=0.01)
    assert total / 2**30 == pytest.approx(total_gib, abs=0.01)


def test_a_shorter_context_is_a_way_out_where_it_fits(text: TextConfig) -> None:
    limit = MemoryLimit(8_000_000_000, "this machine can hold")
    longest = longest_context(text, 6_700_000_000, limit.limit_bytes, 2)
    assert 4096 < longest < 262_144
    check_memory(text, 6_700_000_000, longest, item_bytes=2, limit=limit)
    with pytest.raises(MemoryLimitError, match=f"a context of at most {longest:,} tokens"):
        check_memory(text, 6_700_000_000, longest + 1, item_bytes=2, limit=limit)


def test_longest_context_ends_at_the_models(text: TextConfig) -> None:
    assert longest_context(text, 0, 10**15, 2) == text.max_position_embeddings
    assert longest_context(text, WEIGHTS_BYTES, 10**9, 2) == 0


def test_on_a_mac_the_gpus_recommendation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recommended: dict[str, Any] = {"max_recommended_working_set_size": MAC.limit_bytes}
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: recommended)
    assert machine_limit() == MAC


def test_of_a_mac_that_is_not_here_macos_takes_a_quarter() -> None:
    limit = mac_limit(17_179_869_184)
    assert limit.limit_bytes == pytest.approx(MAC.limit_bytes, rel=0.01)
    assert "17.2 GB" in limit.source


def test_elsewhere_it_is_most_of_memory_or_of_the_containers_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine, "_CGROUP_LIMIT", tmp_path / "memory.max")
    whole = machine_limit().limit_bytes
    assert whole > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_limit().limit_bytes == whole
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_limit().limit_bytes == 900_000


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (23_919_549_408, "23.9 GB")],
)
def test_sizes_are_shown_as_hubs_count(count: int, shown: str) -> None:
    assert format_bytes(count) == shown


@pytest.mark.google_files
def test_the_random_sizes_are_googles(google_checkpoint: Path, text: TextConfig) -> None:
    values = json.loads((google_checkpoint / "config.json").read_text())
    real = Config.from_dict(values).text_config
    assert cache_bytes(real, 5000, 2) == cache_bytes(text, 5000, 2)
