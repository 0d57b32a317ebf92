"""Every kind of rows: what a cache returns, keeps, allocates, and undoes."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, exact
from shared_truth import FORMATS

from mlx_gemma4.cache import SharedCache
from mlx_gemma4.cache.shared import GROWTH
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.shared_rows import INT8_MAX, RowFormat

DH, ROTATED = 128, 32
KIB = 1024
of_formats = pytest.mark.parametrize("row_format", FORMATS)
PERIODS = 10_000.0 ** (mx.arange(0, ROTATED, 2, dtype=mx.float32) / DH)


def make_cache(row_format, context_tokens=0):
    return SharedCache(RowFormat(*FORMATS[row_format]), context_tokens)


def update(cache, rows, rotated=ROTATED):
    """Add shared rows, packed as the cache keeps them."""
    return cache.update_and_fetch(cache.row_format.pack(rows, rotated))


def drawn_rows(rng, offset, length, dtype=mx.float32):
    """Return rows [1, 2, L, ROTATED + DH] as a layer makes them, and k_norm's weight."""
    k_weight = mx.linspace(0.5, 4.0, ROTATED).astype(dtype)
    n = mx.array(rng.standard_normal((1, 2, length, DH)).astype(np.float32)).astype(dtype)
    turned = mx.fast.rope(
        n[..., DH - ROTATED :] * k_weight,
        ROTATED,
        traditional=False,
        base=None,
        scale=1.0,
        offset=mx.array([offset]),
        freqs=PERIODS,
    )
    return mx.concatenate([turned, n], axis=-1), k_weight


def fetched(rows, k_weight, start=0):
    return rows.keys_and_values(start, rows.used, DH, k_weight, PERIODS)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_keys_are_rebuilt_bit_for_bit(rng, dtype):
    """On the plain path values alone are exact: the same products in the same order."""
    shared, value = make_cache("shared_decode"), make_cache("value_decode")
    for length in (3, 300, 1):
        rows, k_weight = drawn_rows(rng, shared.offset, length, dtype)
        both = [update(cache, rows) for cache in (shared, value)]
        for start in (0, both[0].used - 1):
            for ours, theirs in zip(*(fetched(r, k_weight, start) for r in both), strict=True):
                assert exact(ours).tolist() == exact(theirs).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("row_format", ["shared_decode_int8", "value_decode_int8"])
def test_codes_are_off_by_half_a_step(rng, dtype, row_format):
    cache = make_cache(row_format)
    rows, k_weight = drawn_rows(rng, 0, 50, dtype)
    kept = update(cache, rows)
    assert kept.rows.dtype == mx.int8
    assert kept.scales.dtype == dtype
    assert kept.scales.shape[-1] == (2 if FORMATS[row_format][1] else 1)
    scales, codes = exact(kept.scales[:, :, :50]), exact(kept.rows[:, :, :50])
    parts = [(codes[..., -DH:], scales[..., -1:], exact(rows[..., ROTATED:]))]
    if FORMATS[row_format][1]:
        parts.append((codes[..., :ROTATED], scales[..., :1], exact(rows[..., :ROTATED])))
    for code, scale, expected in parts:
        # The largest value itself is cut where its scale was rounded down.
        half = 0.5 + INT8_MAX * mx.finfo(dtype).eps
        assert (abs(code * scale - expected) <= scale * half).all()
        assert (abs(code).max(axis=-1) >= INT8_MAX - 1).all()
    _, values = fetched(kept, k_weight)
    step = exact(rows[..., ROTATED:]).max() / INT8_MAX
    assert abs(exact(values) - exact(rows[..., ROTATED:])).max() < step


def test_the_value_keeps_a_scale_of_its_own(rng):
    """A key of large weights does not cost the value."""
    rows, k_weight = drawn_rows(rng, 0, 20)
    large = mx.concatenate([100 * rows[..., :ROTATED], rows[..., ROTATED:]], axis=-1)
    values = [
        fetched(update(make_cache("shared_decode_int8"), r), k_weight)[1] for r in (rows, large)
    ]
    assert exact(values[0]).tolist() == exact(values[1]).tolist()


@pytest.mark.parametrize("row_format", ["shared_decode_int8", "value_decode_int8"])
def test_rows_of_zeros_stay_zero(row_format):
    kept = update(make_cache(row_format), mx.zeros((1, 1, 4, ROTATED + DH)))
    for array in fetched(kept, mx.ones(ROTATED)):
        assert not exact(array).any()


@of_formats
def test_undone_positions_are_written_anew(rng, row_format):
    undone, straight = make_cache(row_format), make_cache(row_format)
    first, k_weight = drawn_rows(rng, 0, 300)
    second, _ = drawn_rows(rng, 290, 5)
    update(undone, first)
    undone.trim(10)
    assert undone.offset == 290
    update(straight, first[:, :, :290])
    for ours, theirs in zip(
        *(fetched(update(c, second), k_weight) for c in (undone, straight)), strict=True
    ):
        assert exact(ours).tolist() == exact(theirs).tolist()
    with pytest.raises(ValueError, match="cannot undo 296 of 295"):
        undone.trim(296)


@of_formats
def test_state_is_all_there_is(tmp_path, rng, row_format):
    """What is saved and put back goes on as if nothing had been."""
    cache, restored = make_cache(row_format), make_cache(row_format)
    rows, k_weight = drawn_rows(rng, 0, 300, mx.bfloat16)
    update(cache, rows)
    path = str(tmp_path / "cache.safetensors")
    mx.save_safetensors(path, {str(i): a[:, :, :300] for i, a in enumerate(cache.state)})
    saved: Any = mx.load(path)
    restored.state = [saved[str(i)] for i in range(len(saved))]
    restored.offset = 300
    more, _ = drawn_rows(rng, 300, 2, mx.bfloat16)
    results = [fetched(update(c, more), k_weight) for c in (cache, restored)]
    for ours, theirs in zip(*results, strict=True):
        assert exact(ours).tolist() == exact(theirs).tolist()


@of_formats
def test_bytes_are_those_of_all_arrays(row_format):
    cache = make_cache(row_format)
    assert cache.nbytes == 0
    update(cache, mx.zeros((1, 2, 300, ROTATED + DH), mx.bfloat16))
    bits, has_keys = FORMATS[row_format]
    dims = DH + (ROTATED if has_keys else 0)
    row = 2 * dims if bits == 16 else dims + 2 * (2 if has_keys else 1)
    assert cache.nbytes == 512 * 2 * row == sum(array.nbytes for array in cache.state)


def test_a_buffer_grows_by_an_eighth():
    """All copies together are some nine times the rows, whatever their number."""
    cache, sizes = SharedCache(), [0]
    row = mx.zeros((1, 1, 64, 4))
    while cache.offset < 40_000:
        cache.update_and_fetch([row])
        mx.eval(cache.state)
        slots = cache.nbytes // 16
        assert slots % GROWTH == 0
        assert cache.offset <= slots <= max(cache.offset + GROWTH, cache.offset * 9 / 8 + GROWTH)
        if slots > sizes[-1]:
            sizes.append(slots)
    assert sum(sizes[:-1]) < 10 * cache.offset
    assert len(sizes) < 40


def test_room_for_a_planned_context_is_made_at_once():
    cache = SharedCache(context_tokens=5000)
    assert cache.allocated == 0
    slots = [cache.update_and_fetch([mx.zeros((1, 1, 1000, 4))]).rows.shape[2] for _ in range(6)]
    assert slots == [5120, 5120, 5120, 5120, 5120, 6144]


def test_no_more_grows_than_memory_allows_until_it_must():
    cache = SharedCache()
    cache.limit_tokens = 4400
    slots = [cache.update_and_fetch([mx.zeros((1, 1, 1, 4))]).rows.shape[2] for _ in range(4700)]
    assert slots[4399] == slots[4607] == 4608  # not an eighth more than 4,352
    assert slots[4608] == 5376


@pytest.mark.parametrize(
    ("row_format", "bytes_of_token"),
    [*zip(FORMATS, [10 * KIB, 5 * KIB + 32, 8 * KIB, 4 * KIB + 16], strict=True)],
)
def test_a_token_of_the_12b_at_its_whole_context(row_format, bytes_of_token):
    """Eight layers, 262,144 positions in bfloat16: 10, 5, 8, and 4 KiB, and scales."""
    cache = make_cache(row_format, context_tokens=262_144)
    chunk = mx.zeros((1, 1, 32_768, 640), mx.bfloat16)
    for _ in range(8):
        update(cache, chunk, 128)
    assert 8 * cache.nbytes == 262_144 * bytes_of_token


def test_bits_are_settled_once_and_before_there_are_rows():
    fixed = SharedCache(RowFormat())
    open_, begun = (SharedCache(RowFormat(), are_bits_open=True) for _ in range(2))
    rows = mx.ones((1, 1, 3, ROTATED + DH))
    assert not fixed.are_bits_open
    fixed.choose_bits(16)
    with pytest.raises(ValueError, match="rows have 16 bits already, not 8"):
        fixed.choose_bits(8)
    assert open_.are_bits_open
    open_.choose_bits(8)
    assert (open_.row_format.bits, open_.are_bits_open) == (8, False)
    with pytest.raises(ValueError, match="rows have 8 bits already, not 16"):
        open_.choose_bits(16)
    assert open_.update_and_fetch(open_.row_format.pack(rows, ROTATED)).rows.dtype == mx.int8
    begun.update_and_fetch([rows])
    begun.trim(3)
    assert not begun.are_bits_open
    with pytest.raises(ValueError, match="rows have 16 bits already, not 8"):
        begun.choose_bits(8)
