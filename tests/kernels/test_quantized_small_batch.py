import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact
from quantized_truth import FEW_FORMATS, FORMATS, plain, product, quantized, vectors

from mlx_gemma4.kernels import quantized_matvec
from mlx_gemma4.kernels import quantized_small_batch as op
from mlx_gemma4.kernels.kernel import dtype_name

# M, N, K: one group, fewer groups than simdgroups, more; rows of W that fill no tile, one, two
SHAPES = [(5, 1, 64), (8, 7, 192), (6, 33, 320), (7, 16, 448), (2, 3, 64)]

# The same with more than 8 rows of x.
LARGE_SHAPES = [(9, 33, 320), (16, 16, 448), (13, 20, 192)]

# All there are of the 12B.
WIDTHS = [3840, 4096, 8192, 15360]


def check(x, matrix):
    (out,) = op.launch(x, matrix)
    assert_as_close([out], [plain(x, matrix)], [product(x, matrix)])


def check_drawn(rng, M, N, K, bits, group_size, dtype=mx.float32):
    check(vectors(rng, M, K, dtype), quantized(rng, N, K, bits, group_size, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_kernel(rng, metal_sim, bits, group_size, dtype):
    for M, N, K in [*SHAPES, *([(7, 7, 96), (8, 20, 160)] if group_size == 32 else [])]:
        check_drawn(rng, M, N, K, bits, group_size, dtype)
    assert {launch.name for launch in metal_sim.launches} == {"quantized_small_batch"}


@pytest.mark.parametrize(("dtype", "bits", "group_size"), FEW_FORMATS)
def test_more_than_a_fragment_of_rows_of_x(rng, metal_sim, dtype, bits, group_size):
    for M, N, K in LARGE_SHAPES:
        check_drawn(rng, M, N, K, bits, group_size, dtype)


@pytest.mark.parametrize("M", range(1, 17))
def test_every_number_of_rows_of_x(rng, metal_sim, M):
    check_drawn(rng, M, 20, 320, 4, 64, mx.bfloat16)


@pytest.mark.parametrize(("M", "bits", "group_size"), [(8, 4, 64), (16, 4, 64), (8, 8, 32)])
@pytest.mark.parametrize("K", WIDTHS)
def test_widths_of_the_12b(rng, metal_sim, K, M, bits, group_size):
    metal_sim.mode = "run"
    check_drawn(rng, M, 64, K, bits, group_size, mx.bfloat16)


@pytest.mark.parametrize(("M", "bits", "group_size"), [(8, 4, 64), (16, 4, 64), (8, 8, 32)])
@pytest.mark.parametrize("K", WIDTHS)
def test_reads_the_matrix_once(rng, metal_sim, K, M, bits, group_size):
    metal_sim.mode = "count"
    matrix = quantized(rng, 64, K, bits, group_size, mx.bfloat16)
    x = vectors(rng, M, K, mx.bfloat16)
    quantized_matvec.launch(x[:, :1], matrix)
    op.launch(x, matrix)
    one, several = (
        sum(launch.counts.read[name].by_threadgroup for name in ("weight", "scales", "biases"))
        for launch in metal_sim.launches
    )
    assert several <= 1.05 * one
    counts = metal_sim.launches[-1].counts
    assert counts.read["weight"].by_lane == matrix.weight.nbytes
    # Nothing is multiplied but codes and values; 8 rows of x fill a fragment.
    assert counts.matrix_flops == 2 * 64 * K * M


def test_values_of_a_row_reach_no_other(rng, metal_sim):
    matrix = quantized(rng, 5, 320, 4, 64, mx.float32)
    x = exact(vectors(rng, 11, 320, mx.float32))
    x[:, 8] = np.inf
    (out,) = op.launch(mx.array(x, mx.float32), matrix)
    assert np.isfinite(exact(out)).all(axis=-1).tolist() == [[True] * 8 + [False, True, True]]


def test_scales_are_read_from_wherever_mlx_passes_them(rng, metal_sim):
    # An array of less than eight elements is in another address space.
    for N in (1, 8):
        check_drawn(rng, 5, N, 64, 4, 64, mx.float16)


def test_keeps_leading_dimensions(rng, metal_sim):
    matrix = quantized(rng, 5, 64, 8, 32, mx.float32)
    x = vectors(rng, 6, 64, mx.float32).reshape(2, 3, 64)
    (out,) = op.launch(x, matrix)
    assert out.shape == (2, 3, 5)
    assert_as_close([out], [plain(x, matrix)], [product(x, matrix)])


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_kernel_on_the_gpu(rng, bits, group_size, dtype):
    shapes = [(M, 64, width) for M in (5, 8, 16) for width in WIDTHS]
    for M, N, K in [*SHAPES, *LARGE_SHAPES, *shapes]:
        check_drawn(rng, M, N, K, bits, group_size, dtype)
