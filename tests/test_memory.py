"""Memory: the sums agree with what caches allocate, and a refusal says what would fit."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from random_checkpoint import SIZES, Size, build_config

import mlx_gemma4.cache.shared
import mlx_gemma4.cache.sliding
import mlx_gemma4.generation.generate
import mlx_gemma4.kernels.interval_attention
import mlx_gemma4.model.gemma4
from mlx_gemma4 import memory
from mlx_gemma4.cache import SlidingCache
from mlx_gemma4.config import Config, TextConfig
from mlx_gemma4.errors import MemoryLimitError
from mlx_gemma4.memory import (
    MemoryLimit,
    cache_bytes,
    check_memory,
    format_bytes,
    longest_context,
    machine_limit,
    plan_memory,
    workspace_bytes,
)
from mlx_gemma4.model.gemma4 import Gemma4

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
def test_cache_bytes_are_those_that_caches_allocate(num_tokens: int) -> None:
    config = config_of(Size(64, 128, 6, 4, 2, 64, 128, 300, 1024))
    text = config.text_config
    cache = Gemma4(config).make_cache()
    for index, layer_cache in enumerate(cache):
        dims = 2 * 64 if isinstance(layer_cache, SlidingCache) else 128 + 32
        rows = mx.zeros((1, text.num_key_value_heads_of(index), num_tokens, dims), mx.bfloat16)
        layer_cache.update_and_fetch(rows)
    assert cache_bytes(text, num_tokens, 2) == sum(layer_cache.nbytes for layer_cache in cache)


def test_constants_are_those_of_the_modules_that_allocate() -> None:
    assert memory._CACHE_GROWTH == mlx_gemma4.cache.sliding.GROWTH
    assert memory._CACHE_GROWTH == mlx_gemma4.cache.shared.GROWTH
    assert memory._RING_SLACK == mlx_gemma4.model.gemma4.RING_SLACK
    assert memory._PREFILL_STEP == mlx_gemma4.generation.generate.PREFILL_STEP_SIZE
    assert memory._SCORE_BLOCK_BYTES == (mlx_gemma4.kernels.interval_attention.SCORE_BLOCK_BYTES)


def test_workspace_stops_growing_with_the_chunk(text: TextConfig) -> None:
    assert workspace_bytes(text, 64, 2) < workspace_bytes(text, 2048, 2) < 10**9
    assert workspace_bytes(text, 2048, 2) == workspace_bytes(text, 262_144, 2)


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
    assert "--quantize 4 (7.6 GB in all)" in message
    assert "--quantize 8" not in message  # would not fit either
    assert "a context of" not in message
    assert "a smaller checkpoint" in message


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


def test_elsewhere_it_is_most_of_memory_or_of_the_containers_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "memory.max")
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
