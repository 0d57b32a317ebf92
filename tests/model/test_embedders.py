import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_gemma4.model.embedders import layer_norm_of_pixels

SIDE = 48


def layer_norm(patches, norm):
    """The formula in float64."""
    x = patches.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * np.array(norm.weight).astype(np.float64) + np.array(norm.bias)


def patches_of(kind, rng):
    shape = (7, SIDE * SIDE, 3)
    if kind == "random":
        return rng.random(shape)
    if kind == "one grey":
        return np.full(shape, 240 / 255)
    if kind == "one colour":
        return np.broadcast_to(np.array([250, 240, 225]) / 255, shape)
    speck = np.full(shape, 240 / 255)
    speck[:, 5] = 0.9
    return speck


@pytest.mark.parametrize("kind", ["random", "one grey", "one colour", "a speck"])
def test_equals_float64_also_on_flat_patches(rng, kind):
    norm = nn.LayerNorm(3 * SIDE**2, 1e-5)
    norm.weight = mx.array(rng.uniform(0.5, 1.5, 3 * SIDE**2).astype(np.float32))
    norm.bias = mx.array(rng.normal(0, 0.1, 3 * SIDE**2).astype(np.float32))
    patches = patches_of(kind, rng).reshape(7, -1).astype(np.float32)
    out = np.array(layer_norm_of_pixels(mx.array(patches), norm)).astype(np.float64)
    error = out - layer_norm(patches, norm)
    assert abs(error).max() < 1e-5
    # An error that all values share adds up in the matrix that follows.
    assert abs(error.mean(-1)).max() < 2e-7
