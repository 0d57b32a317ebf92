from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact

from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.merge_splits import merge_splits, num_splits

NO_KEY = -1e30  # the largest score of a run without keys, as kernels write it

# B, K, splits, query heads of a key head, L, Dh
SHAPES = [
    (1, 1, 2, 1, 1, 128),
    (2, 3, 5, 2, 3, 128),
    (1, 2, 7, 4, 2, 256),
    (1, 1, 16, 16, 1, 512),
    (1, 8, 16, 2, 1, 256),
]


def drawn(rng, shape, dtype, spread=4.0) -> tuple[mx.array, mx.array, mx.array]:
    """Return runs whose largest scores differ, and an array of the result's shape and dtype."""
    B, K, splits, group, L, Dh = shape
    partial = mx.array(rng.normal(size=(B, K, splits, L * group, Dh)).astype(np.float32))
    largest = rng.normal(scale=spread, size=partial.shape[:-1])
    weights = rng.uniform(1, 60, largest.shape)
    state = mx.array(np.stack([largest, weights], axis=-1).astype(np.float32))
    return partial, state, mx.zeros((B, K * group, L, Dh), dtype)


def merge(partial: Any, state: Any, power: Any) -> Any:
    """Return rows [B, K, L * group, Dh], by NumPy's or MLX's functions."""
    factors = power(state[..., 0] - state[..., 0].max(axis=2, keepdims=True))
    sums = (factors[..., None] * partial).sum(axis=2)
    return sums / (factors * state[..., 1]).sum(axis=2)[..., None]


def by_heads(rows, q):
    """Row r of a key head is query head r % group at position r // group."""
    B, _, L, Dh = q.shape
    return rows.reshape(B, rows.shape[1], L, -1, Dh).swapaxes(2, 3).reshape(q.shape)


def check(partial, state, q):
    truth = by_heads(merge(exact(partial), exact(state), np.exp2), q)
    plain = by_heads(merge(partial, state, lambda x: mx.exp(x * np.log(2))), q)
    assert_as_close([merge_splits(partial, state, q)], [plain.astype(q.dtype)], [truth])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel(rng, metal_sim, shape, dtype):
    check(*drawn(rng, shape, dtype))
    assert [launch.name for launch in metal_sim.launches] == ["merge_splits"]


@pytest.mark.parametrize("place", [0, 2, 4])
def test_runs_without_keys_count_nothing(rng, metal_sim, place):
    partial, state, q = drawn(rng, SHAPES[1], mx.float32)
    rest = [i for i in range(5) if i != place]
    expected = merge_splits(partial[:, :, rest], state[:, :, rest], q)
    partial[:, :, place] = 0.0
    state[:, :, place] = mx.array([NO_KEY, 0.0])
    assert exact(merge_splits(partial, state, q)).tolist() == exact(expected).tolist()


@pytest.mark.parametrize("spread", [0.0, 300.0, 3e4])
def test_scores_that_are_equal_and_that_are_far_apart(rng, metal_sim, spread):
    check(*drawn(rng, SHAPES[1], mx.float32, spread))


def test_orders_of_execution(rng, metal_sim):
    metal_sim.seed, metal_sim.orders = 100, 10
    check(*drawn(rng, SHAPES[2], mx.bfloat16))


@pytest.mark.parametrize(
    ("keys", "threadgroups", "splits"),
    [
        ([1], 1, 1),
        ([64], 1, 1),
        ([65], 1, 2),
        ([3, 1024], 8, 16),  # the longest row of the batch decides
        ([1024], 40, 3),
        ([1024], 1000, 1),
        ([10**6], 1, 128),
    ],
)
def test_number_of_splits(keys, threadgroups, splits):
    hi = np.array(keys, np.int32)[:, None] + 9
    mask = IntervalMask(np.full_like(hi, 10), hi, np.zeros((len(keys), 1), np.int32))
    assert num_splits(mask, threadgroups, 64) == splits


def test_splits_follow_all_rows_of_a_batch_row():
    """Two positions whose intervals lie apart: everything between them is read."""
    lo, hi = np.array([[0, 100]], np.int32), np.array([[9, 199]], np.int32)
    assert num_splits(IntervalMask(lo, hi, hi), 1, 64) == 4


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_on_the_gpu(rng, shape, dtype):
    check(*drawn(rng, shape, dtype))
