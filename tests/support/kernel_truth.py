"""What kernels are compared with: NumPy in float64, and the one rule of closeness."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

DTYPES = [mx.float32, mx.float16, mx.bfloat16]


def exact(array: mx.array) -> np.ndarray:
    """Return an array in float64."""
    return np.array(array.astype(mx.float32), np.float64)


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """Return x over the root of its mean square, times a weight."""
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return normed if weight is None else normed * weight


def rotate(x: np.ndarray, positions: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """Rotate the first dimensions of x [B, heads, L, Dh] at positions [B, L].

    Angles are rounded to float32, as the network defines them: at position 262,143 that moves them
    by up to 0.008, which is no error of a kernel.
    """
    frequencies = np.float32(1) / periods.astype(np.float32)
    angles = (positions.astype(np.float32)[:, None, :, None] * frequencies).astype(np.float64)
    half = len(periods)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos, rest], axis=-1)


def assert_as_close(
    outputs: Sequence[mx.array], plain: Sequence[mx.array], truth: Sequence[np.ndarray]
) -> None:
    """Fail unless a kernel is at most twice as far from the truth as plain MLX, and 1e-5 more.

    Args:
        outputs: Of the kernel.
        plain: Of the same operation in plain MLX, in the same dtype.
        truth: In float64.
    """
    for ours, theirs, expected in zip(outputs, plain, truth, strict=True):
        assert ours.shape == theirs.shape == expected.shape
        assert ours.dtype == theirs.dtype
        scale = abs(expected).max()
        error, allowed = (abs(exact(a) - expected).max() / scale for a in (ours, theirs))
        assert error <= 2 * allowed + 1e-5, f"off by {error:.3g}, plain MLX by {allowed:.3g}"
