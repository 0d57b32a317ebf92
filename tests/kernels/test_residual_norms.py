from typing import Any

import mlx.core as mx
import pytest
from kernel_truth import DTYPES, assert_as_close, exact, rms_norm

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels import residual_norms as op
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.residual_norms import residual_norms

EPS = 1e-6

# B, L, D: one simdgroup, several, an odd rest, the 12B's width, more than one step a thread
SHAPES = [(1, 1, 32), (2, 3, 192), (1, 5, 416), (1, 2, 3840), (3, 1, 5376)]


def drawn(rng, B, L, D, dtype, scalar: float | None = 0.75) -> tuple[Any, ...]:
    x = mx.array(rng.normal(scale=3, size=(B, L, D))).astype(dtype)
    y = mx.array(rng.normal(scale=40, size=(B, L, D))).astype(dtype)
    weights = [mx.array(rng.uniform(0.3, 4, D)).astype(dtype) for _ in range(2)]
    return x, y, *weights, None if scalar is None else mx.array([scalar], dtype), EPS


def truth(x, y, post_weight, next_weight, scalar, eps):
    h = exact(x) + rms_norm(exact(y), exact(post_weight), eps)
    h = h if scalar is None else h * exact(scalar)
    return h, rms_norm(h, exact(next_weight), eps)


@pytest.mark.parametrize("scalar", [0.75, None])
@pytest.mark.parametrize(("B", "L", "D"), SHAPES)
def test_definition(rng, B, L, D, scalar):
    arguments = drawn(rng, B, L, D, mx.float32, scalar)
    for ours, expected in zip(op.define(*arguments), truth(*arguments), strict=True):
        assert abs(exact(ours) - expected).max() <= 1e-5 * abs(expected).max()


@pytest.mark.parametrize("scalar", [0.75, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("B", "L", "D"), SHAPES)
def test_kernel(rng, metal_sim, B, L, D, dtype, scalar):
    arguments = drawn(rng, B, L, D, dtype, scalar)
    assert_as_close(op.launch(*arguments), op.define(*arguments), truth(*arguments))
    assert [launch.name for launch in metal_sim.launches] == ["residual_norms"]


def test_a_row_of_zeros_stays_finite(rng, metal_sim):
    x, _, *rest = drawn(rng, 1, 2, 64, mx.float16)
    zeros = mx.zeros_like(x)
    h, following = op.launch(zeros, zeros, *rest)
    assert exact(h).tolist() == exact(following).tolist() == exact(zeros).tolist()


def test_chooses(rng, metal_sim):
    arguments = drawn(rng, 1, 1, 64, mx.float32)
    with registry.forced("residual_norms"):
        residual_norms(*arguments)
    assert len(metal_sim.launches) == 1
    with registry.forced():
        residual_norms(*arguments)
    assert len(metal_sim.launches) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y, *rest: (x[..., :40], y[..., :40], *(w[:40] for w in rest[:2]), *rest[2:]),
        lambda x, y, *rest: (x.astype(mx.float16), y, *rest),
        lambda x, y, *rest: (x[:, :0], y[:, :0], *rest),
    ],
    ids=["width", "dtypes", "no rows"],
)
def test_what_does_not_fit_is_defined(rng, metal_sim, change):
    arguments = change(*drawn(rng, 1, 1, 64, mx.float32))
    with registry.forced("residual_norms"):
        outputs = residual_norms(*arguments)
    assert metal_sim.launches == []
    for ours, plain in zip(outputs, op.define(*arguments), strict=True):
        assert exact(ours).tolist() == exact(plain).tolist()


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("B", "L", "D"), SHAPES)
def test_kernel_on_the_gpu(rng, B, L, D, dtype):
    arguments = drawn(rng, B, L, D, dtype)
    assert_as_close(op.launch(*arguments), op.define(*arguments), truth(*arguments))
