"""The end of a block of a decoder layer and the norm of the next one, in one launch.

    h = (x + rms_norm(y) * post_weight) * scalar
    next = rms_norm(h) * next_weight

y is what attention or the feed-forward has made of the previous `next`.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params

# Rows are read four values a thread; every Apple GPU has room for so many threads of this kernel.
_LANES, _MAX_THREADS, _WIDTH = 32, 512, 4

_kernel = MetalKernel(
    "residual_norms",
    inputs=("x", "y", "post_weight", "next_weight", "scalar", "params"),
    outputs=("h", "next"),
)


def residual_norms(
    x: mx.array,
    y: mx.array,
    post_weight: mx.array,
    next_weight: mx.array,
    scalar: mx.array | None,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Return the new residual stream, and its norm for the next block.

    Args:
        x: [B, L, D], the residual stream.
        y: [B, L, D], what the block has made.
        post_weight: [D], of the norm after the block.
        next_weight: [D], of the norm before the next block.
        scalar: [1], a factor of the stream; None is 1.
        eps: Of both norms.

    Returns:
        h and next, [B, L, D] each, in the dtype of x.
    """
    arrays = (x, y, post_weight, next_weight, *([] if scalar is None else [scalar]))
    fits = x.shape[-1] % _LANES == 0 and x.size > 0 and len({a.dtype for a in arrays}) == 1
    run = launch if fits and registry.is_on("residual_norms") else define
    return run(x, y, post_weight, next_weight, scalar, eps)


def define(
    x: mx.array,
    y: mx.array,
    post_weight: mx.array,
    next_weight: mx.array,
    scalar: mx.array | None,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Return the same by MLX's own operations: the definition."""
    h = x + mx.fast.rms_norm(y, post_weight, eps)
    if scalar is not None:
        h = h * scalar
    return h, mx.fast.rms_norm(h, next_weight, eps)


def launch(
    x: mx.array,
    y: mx.array,
    post_weight: mx.array,
    next_weight: mx.array,
    scalar: mx.array | None,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Return the same by the Metal kernel; D is a multiple of 32, and all dtypes are equal."""
    dims = x.shape[-1]
    steps = -(-dims // (_WIDTH * _MAX_THREADS))
    threads = _LANES * -(-dims // (_WIDTH * _LANES * steps))
    h, following = _kernel(
        inputs=[
            x,
            y,
            post_weight,
            next_weight,
            x if scalar is None else scalar,
            pack_params(float(eps)),
        ],
        template=[
            ("T", x.dtype),
            ("DIMS", dims),
            ("THREADS", threads),
            ("HAS_SCALAR", scalar is not None),
        ],
        grid=(threads, x.size // dims, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape, x.shape],
        output_dtypes=[x.dtype, x.dtype],
    )
    return h, following


def _case(label: str, B: int, L: int, D: int, dtype: mx.Dtype, has_scalar: bool) -> Case:
    """Return a call with drawn arrays; the scalar keeps h in range however often it is repeated."""
    keys = mx.random.split(mx.random.key(D + L), 4)
    x, y = (mx.random.normal((B, L, D), key=key).astype(dtype) for key in keys[:2])
    weights = (mx.random.uniform(0.5, 2.0, (D,), key=key).astype(dtype) for key in keys[2:])
    scalar = mx.array([0.75], dtype) if has_scalar else None
    return Case(label, (x, y, *weights, scalar, 1e-6))


def _check_cases(dtype: mx.Dtype) -> Sequence[Case]:
    return [
        _case("a row with an odd rest", 1, 1, 2080, dtype, has_scalar=True),
        _case("rows without scalar", 2, 3, 192, dtype, has_scalar=False),
    ]


def _tune_cases(sizes: Sizes) -> Sequence[Case]:
    D, dtype = sizes.hidden_size, sizes.dtype
    if D % _LANES:
        return []
    return [
        _case("decode", 1, 1, D, dtype, has_scalar=True),
        _case("verify 8", 1, 8, D, dtype, has_scalar=True),
        _case("prefill 2048", 1, 2048, D, dtype, has_scalar=True),
    ]


KERNEL = registry.register(
    Kernel("residual_norms", ("residual_norms",), launch, define, _check_cases, _tune_cases)
)
