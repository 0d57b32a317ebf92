import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.kernels import interval_attention as op
from mlx_gemma4.kernels.interval_attention import (
    IntervalMask,
    interval_attention,
    packed_attention,
    reads_in_place,
)

# queries heads, key heads, key dims, value dims
SHAPES = [(4, 2, 32, 32), (4, 1, 48, 40), (3, 3, 16, 16)]


def drawn(rng, B, H, K, L, S, Dk, Dv):
    shapes = (B, H, L, Dk), (B, K, S, Dk), (B, K, S, Dv)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def run(q, k, v, mask):
    return interval_attention(mx.array(q), mx.array(k), mx.array(v), mask)


def reference(q, k, v, lo, hi, key_positions):
    """Every query on its own, in float64."""
    B, H, L, _ = q.shape
    group = H // k.shape[1]
    out = np.zeros((B, H, L, v.shape[-1]))
    for b, h, i in np.ndindex(B, H, L):
        seen = (key_positions[b] >= lo[b, i]) & (key_positions[b] <= hi[b, i])
        scores = k[b, h // group, seen].astype(np.float64) @ q[b, h, i].astype(np.float64)
        weights = np.exp(scores - scores.max())
        out[b, h, i] = weights / weights.sum() @ v[b, h // group, seen].astype(np.float64)
    return out


def intervals(rng, B, L, positions):
    hi = np.sort(rng.choice(positions, (B, L)), axis=1).astype(np.int32)
    lo = np.maximum(hi - rng.integers(0, 9, (B, L)), positions.min()).astype(np.int32)
    return lo, hi


@pytest.mark.parametrize("block_bytes", [1, 5000, 64 << 20])
@pytest.mark.parametrize("order", ["in order", "ring", "empty slots"])
@pytest.mark.parametrize(("H", "K", "Dk", "Dv"), SHAPES)
def test_equals_every_query_on_its_own(rng, monkeypatch, H, K, Dk, Dv, order, block_bytes):
    monkeypatch.setattr(op, "SCORE_BLOCK_BYTES", block_bytes)
    S, L = 23, 9
    q, k, v = drawn(rng, 1, H, K, L, S, Dk, Dv)
    positions = np.arange(40, 40 + S, dtype=np.int32)
    lo, hi = intervals(rng, 1, L, positions)
    if order != "in order":
        positions = rng.permutation(positions)
    if order == "empty slots":
        empty = ~np.isin(positions, np.concatenate([lo[0], hi[0]]))
        positions = np.where(empty, -1, positions).astype(np.int32)
    positions = positions[None]
    out = run(q, k, v, IntervalMask(lo, hi, positions))
    np.testing.assert_allclose(out, reference(q, k, v, lo, hi, positions), atol=2e-5)


def test_rows_of_a_batch_have_positions_of_their_own(rng):
    q, k, v = drawn(rng, 3, 4, 2, 5, 11, 16, 16)
    positions = np.stack([np.arange(11) + start for start in (0, 7, 30)]).astype(np.int32)
    hi = positions[:, 6:]
    lo = np.maximum(hi - 4, 0).astype(np.int32)
    out = run(q, k, v, IntervalMask(lo, hi, positions))
    np.testing.assert_allclose(out, reference(q, k, v, lo, hi, positions), atol=2e-5)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("L", [1, 8, 9])
@pytest.mark.parametrize("value_start", [16, 4])
def test_packed_rows_are_keys_and_values_side_by_side(rng, value_start, L, dtype):
    """Rows [key | value], and rows whose key and value overlap, as global layers keep them."""
    Dh, S = 16, 23
    q, rows, _ = drawn(rng, 2, 4, 2, L, S, value_start + Dh, 1)
    q = q[..., :Dh]
    positions = np.stack([rng.permutation(S), np.arange(S)]).astype(np.int32)
    lo, hi = intervals(rng, 2, L, np.arange(S, dtype=np.int32))
    q, rows = mx.array(q).astype(dtype), mx.array(rows).astype(dtype)
    out = packed_attention(q, rows, value_start, IntervalMask(lo, hi, positions))
    assert out.dtype == dtype
    exact_q, exact_rows = (np.array(array.astype(mx.float32)) for array in (q, rows))
    truth = reference(
        exact_q, exact_rows[..., :Dh], exact_rows[..., value_start:], lo, hi, positions
    )
    # bfloat16 scores, weights, and sums are each rounded to 8 bits.
    np.testing.assert_allclose(
        out.astype(mx.float32), truth, atol=2e-5 if dtype == mx.float32 else 0.1
    )


def test_few_queries_copy_no_packed_rows(rng):
    Dh, S = 64, 8192
    q, rows, _ = drawn(rng, 1, 4, 1, 9, S, 2 * Dh, 1)
    q, rows = mx.array(q[..., :Dh]), mx.array(rows)
    peaks = []
    for L in (1, 9):
        hi = np.full((1, L), S - 1, np.int32)
        mask = IntervalMask(np.zeros_like(hi), hi, np.arange(S, dtype=np.int32)[None])
        queries = mx.contiguous(q[:, :, :L])
        mx.eval(queries, rows)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(packed_attention(queries, rows, Dh, mask))
        peaks.append(mx.get_peak_memory() - before)
        assert reads_in_place(queries) == (L == 1)
    assert peaks[0] < rows.nbytes / 4
    assert peaks[1] > rows.nbytes / 2  # a copy of the keys, and one of the values


@pytest.mark.parametrize(("H", "K", "Dk", "Dv"), SHAPES)
def test_mlxs_own_attention_takes_the_same_mask(rng, H, K, Dk, Dv):
    """What a GPU runs: the same function, with MLX's fused attention for each block."""
    q, k, v = (mx.array(array) for array in drawn(rng, 1, H, K, 6, 13, Dk, Dv))
    positions = rng.permutation(np.arange(13, dtype=np.int32))
    lo, hi = intervals(rng, 1, 6, positions)
    positions = positions[None]
    mask = IntervalMask(lo, hi, positions)
    keys, matrix = mask.block(0, 6)
    assert keys == slice(0, 13)
    assert matrix is not None
    fused = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=matrix)
    plain = interval_attention(q, k, v, mask)
    np.testing.assert_allclose(fused, plain, atol=2e-5)


def test_no_mask_where_everything_is_visible():
    lo, hi = np.zeros((1, 1), np.int32), np.full((1, 1), 7, np.int32)
    ring = np.roll(np.arange(8, dtype=np.int32), 3)[None]
    assert IntervalMask(lo, hi, ring).block(0, 1) == (slice(0, 8), None)
    assert IntervalMask(lo, hi - 1, ring).block(0, 1)[1] is not None


def test_keys_that_no_query_of_a_block_sees_are_left_out():
    hi = np.arange(100, dtype=np.int32)[None]
    mask = IntervalMask(np.maximum(hi - 9, 0), hi, hi)
    keys, matrix = mask.block(40, 50)
    assert keys == slice(31, 50)
    assert matrix is not None
    assert matrix.shape == (1, 1, 10, 19)
    assert mask.block(40, 50)[1] is matrix


def test_scores_of_a_long_prompt_stay_within_a_block(rng, monkeypatch):
    """The temporary memory follows the block, not the prompt."""
    L = 2048
    q, k, v = (mx.array(array) for array in drawn(rng, 1, 4, 1, L, L, 8, 8))
    hi = np.arange(L, dtype=np.int32)[None]
    peaks = []
    monkeypatch.setattr(op, "MIN_BLOCK_QUERIES", L)
    for block_bytes in (1 << 20, 1 << 30):
        monkeypatch.setattr(op, "SCORE_BLOCK_BYTES", block_bytes)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(interval_attention(q, k, v, IntervalMask(np.zeros_like(hi), hi, hi)))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] > 4 * L * L * 4  # every score at once, float32
    assert peaks[0] < peaks[1] / 3


def test_blocks_come_one_after_the_other(rng, monkeypatch):
    """MLX would make the scores of ten blocks at once: as many operations as it launches ahead."""
    L, size = 2048, 64
    monkeypatch.setattr(op, "MIN_BLOCK_QUERIES", size)
    monkeypatch.setattr(op, "SCORE_BLOCK_BYTES", 4 * 4 * L * size)
    q, k, v = (mx.array(array) for array in drawn(rng, 1, 4, 1, L, L, 8, 8))
    hi = np.arange(L, dtype=np.int32)[None]
    mask = IntervalMask(np.zeros_like(hi), hi, hi)
    mx.eval(q, k, v, [mask.block(start, start + size)[1] for start in range(0, L, size)])
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(interval_attention(q, k, v, mask))
    assert mx.get_peak_memory() - before < 7 * op.SCORE_BLOCK_BYTES


def test_a_block_reads_the_keys_of_its_band_alone(rng):
    """1,024 queries of a window of 256 see 1,279 keys in all; a block of 128 sees 383."""
    L, window = 1024, 256
    hi = window + np.arange(L, dtype=np.int32)[None]
    mask = IntervalMask(hi - window + 1, hi, np.arange(window + L, dtype=np.int32)[None])
    q, k, v = drawn(rng, 1, 2, 1, L, window + L, 8, 8)
    out = run(q, k, v, mask)
    widths = {
        keys.stop - keys.start for keys, _ in (mask.block(n, n + 128) for n in range(0, L, 128))
    }
    assert widths == {window + 127}
    assert mask._blocks.keys() == {(n, n + 128) for n in range(0, L, 128)}
    expected = reference(q, k, v, mask.lo, mask.hi, mask.key_positions)
    np.testing.assert_allclose(out, expected, atol=2e-5)
