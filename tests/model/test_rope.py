"""Angles far out are as near to the truth as those of transformers, which are float32 too."""

from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.model.rope import RoPE

LAST = 262_143  # position of the 12B's context


def exact_frequencies(head_dim, share, theta):
    return theta ** -(np.arange(0, 2 * int(share * head_dim // 2), 2) / head_dim)


def rotated_units(rope, position):
    """Return (cos, sin) of every angle as complex numbers, as the model rotates."""
    half = rope.dims // 2
    x = mx.concatenate([mx.ones((1, 1, 1, half)), mx.zeros((1, 1, 1, half))], axis=-1)
    out = mx.fast.rope(
        x, rope.dims, traditional=False, base=None, scale=1.0, offset=position, freqs=rope.periods
    )
    cosines, sines = np.split(np.array(out).ravel().astype(np.float64), 2)
    return cosines + 1j * sines


def units_of_transformers(head_dim, share, theta, position):
    """Return the same in the steps of Gemma4UnifiedTextRotaryEmbedding, each in float32."""
    exponents = np.arange(0, 2 * int(share * head_dim // 2), 2, dtype=np.float32)
    frequencies = np.float32(1) / np.float32(theta) ** (exponents / np.float32(head_dim))
    angles = frequencies * np.float32(position)
    return np.cos(angles).astype(np.float64) + 1j * np.sin(angles).astype(np.float64)


@pytest.mark.parametrize(("head_dim", "share", "theta"), [(512, 0.25, 1e6), (256, 1.0, 1e4)])
def test_the_last_position_is_as_true_as_in_transformers(head_dim, share, theta):
    parameters: Any = SimpleNamespace(partial_rotary_factor=share, rope_theta=theta)
    ours = rotated_units(RoPE(cast(Any, parameters), head_dim), LAST)
    theirs = units_of_transformers(head_dim, share, theta, LAST)
    truth = np.exp(1j * LAST * exact_frequencies(head_dim, share, theta))
    error, reference = abs(ours - truth), abs(theirs - truth)
    assert 0.01 < reference.max() < 0.03  # what float32 can do there
    assert error.max() <= 1.001 * reference.max()
    assert np.sqrt((error**2).mean()) <= 1.001 * np.sqrt((reference**2).mean())
