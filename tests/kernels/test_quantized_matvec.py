import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact
from quantized_truth import FEW_FORMATS, FORMATS, plain, product, quantized, vectors

from mlx_gemma4.kernels import quantized_matvec as op
from mlx_gemma4.kernels.kernel import dtype_name

# N, K: one row, rows that fill no simdgroup; less than half a step, half, more than half, a step
# and less than half, steps and half
SHAPES = [(1, 64), (7, 128), (33, 192), (3, 320), (9, 704), (2, 3840)]

# All there are of the 12B.
WIDTHS = [3840, 4096, 8192, 15360]


def check(x, matrix):
    (out,) = op.launch(x, matrix)
    assert_as_close([out], [plain(x, matrix)], [product(x, matrix)])


def check_drawn(rng, M, N, K, bits, group_size, dtype=mx.float32):
    check(vectors(rng, M, K, dtype), quantized(rng, N, K, bits, group_size, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_one_row_of_x(rng, metal_sim, bits, group_size, dtype):
    for N, K in [*SHAPES, *([(7, 96), (5, 608)] if group_size == 32 else [])]:
        check_drawn(rng, 1, N, K, bits, group_size, dtype)
    assert {launch.name for launch in metal_sim.launches} == {"quantized_matvec"}


@pytest.mark.parametrize(("dtype", "bits", "group_size"), FEW_FORMATS)
def test_rows_of_x(rng, metal_sim, dtype, bits, group_size):
    matrix = quantized(rng, 9, 320, bits, group_size, dtype)
    for M in [2, 3, 4, 5, 11, 16, 18]:  # one tile, several, more than a threadgroup takes
        check(vectors(rng, M, 320, dtype), matrix)


@pytest.mark.parametrize(("M", "bits", "group_size"), [(1, 4, 64), (1, 8, 64), (4, 4, 32)])
@pytest.mark.parametrize("K", WIDTHS)
def test_widths_of_the_12b(rng, metal_sim, K, M, bits, group_size):
    metal_sim.mode = "run"
    check_drawn(rng, M, 64, K, bits, group_size, mx.bfloat16)


@pytest.mark.parametrize(("bits", "K"), [(4, 3840), (8, 3840), (4, 8192)])
def test_widths_of_the_12b_are_read_as_they_should(rng, metal_sim, bits, K):
    check_drawn(rng, 1, 10, K, bits, 64, mx.bfloat16)


@pytest.mark.parametrize(("M", "bits", "group_size"), [(1, 4, 64), (1, 8, 32), (16, 4, 64)])
@pytest.mark.parametrize("K", WIDTHS)
def test_reads_the_matrix_once(rng, metal_sim, K, M, bits, group_size):
    metal_sim.mode = "count"
    matrix = quantized(rng, 64, K, bits, group_size, mx.bfloat16)
    op.launch(vectors(rng, M, K, mx.bfloat16), matrix)
    read = metal_sim.launches[-1].counts.read
    traffic = sum(read[name].by_threadgroup for name in ("weight", "scales", "biases"))
    assert traffic <= 1.02 * stored_bytes(matrix)
    # A vector of 8 rows of W is taken from the cache, not once a row.
    assert read["x"].by_lane <= 17.1 * M * K * 2


def stored_bytes(matrix):
    return matrix.weight.nbytes + matrix.scales.nbytes + matrix.biases.nbytes


@pytest.mark.parametrize(("dtype", "bits", "group_size"), FEW_FORMATS)
def test_a_row_of_x_gives_the_same_bits_among_others(rng, metal_sim, dtype, bits, group_size):
    metal_sim.mode = "run"
    assert_rows_alone(rng, bits, group_size, dtype, num_rows=200)


def assert_rows_alone(rng, bits, group_size, dtype, num_rows):
    """Compare rows of drawn products of 2 to 16 with the product of each alone."""
    done = 0
    while done < num_rows:
        M, K = int(rng.integers(2, 17)), group_size * int(rng.integers(1, 22))
        matrix = quantized(rng, int(rng.integers(1, 10)), K, bits, group_size, dtype)
        x = vectors(rng, M, K, dtype)
        together = exact(op.launch(x, matrix)[0])
        alone = [exact(op.launch(x[:, m : m + 1], matrix)[0]) for m in range(M)]
        assert np.array_equal(together, np.concatenate(alone, axis=1))
        done += M


def test_real_widths_give_the_same_bits_among_others(rng, metal_sim):
    metal_sim.mode = "run"
    for K in WIDTHS:
        matrix = quantized(rng, 16, K, 4, 64, mx.bfloat16)
        x = vectors(rng, 16, K, mx.bfloat16)
        together = exact(op.launch(x, matrix)[0])
        for m in range(16):
            alone = exact(op.launch(x[:, m : m + 1], matrix)[0])
            assert np.array_equal(together[:, m : m + 1], alone)


def test_values_of_a_row_reach_no_other(rng, metal_sim):
    matrix = quantized(rng, 5, 320, 4, 64, mx.float32)
    x = exact(vectors(rng, 6, 320, mx.float32))
    x[:, 4] = np.inf
    (out,) = op.launch(mx.array(x, mx.float32), matrix)
    assert np.isfinite(exact(out)).all(axis=-1).tolist() == [[True] * 4 + [False, True]]


def test_scales_are_read_from_wherever_mlx_passes_them(rng, metal_sim):
    # An array of less than eight elements is in another address space.
    for N in (1, 8):
        check_drawn(rng, 1, N, 64, 4, 64, mx.float16)


def test_keeps_leading_dimensions(rng, metal_sim):
    matrix = quantized(rng, 5, 64, 8, 32, mx.float32)
    x = vectors(rng, 6, 64, mx.float32).reshape(2, 3, 64)
    (out,) = op.launch(x, matrix)
    assert out.shape == (2, 3, 5)
    assert_as_close([out], [plain(x, matrix)], [product(x, matrix)])


@pytest.mark.metal
@pytest.mark.parametrize("M", [1, 2, 4, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_kernel_on_the_gpu(rng, bits, group_size, dtype, M):
    for N, K in [*SHAPES, *((64, width) for width in WIDTHS)]:
        check_drawn(rng, M, N, K, bits, group_size, dtype)
    assert_rows_alone(rng, bits, group_size, dtype, num_rows=1000)
