"""The network on its kernels: the same answers as without, every launch checked or counted."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.api import load
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.registry import KERNELS

SAMPLES = find_checkpoint("demo") / "samples"


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="float32")


def answer(model, inputs, count, **options):
    steps = generate_step(inputs, model, max_tokens=count, **options)
    return [token for token, _ in steps]


def test_a_picture_is_answered_the_same(demo, metal_sim):
    model, processor = demo
    inputs = processor("What shape is this?", images=[SAMPLES / "shape.png"])
    with registry.forced():
        plain_logits, plain = model(inputs, model.make_cache()), answer(model, inputs, 6)
    assert metal_sim.launches == []
    with registry.forced(*KERNELS):
        logits = model(inputs, model.make_cache())
        checked = Counter(launch.name for launch in metal_sim.launches)
        metal_sim.mode = "run"
        tokens = answer(model, inputs, 6)
    layers = model.config.text_config.num_hidden_layers
    assert checked["residual_norms"] == 2 * layers
    assert checked["qkv_norm_rope"] == layers
    assert checked["sliding_tiles"] == layers - 1
    assert tokens == plain
    difference = np.array(logits) - np.array(plain_logits)
    assert np.sqrt((difference**2).mean() / (np.array(plain_logits) ** 2).mean()) < 2e-5


def test_a_long_prompt_wraps_the_ring_and_goes_on(demo, metal_sim):
    """More positions than the window, in chunks that do and do not fit into the ring."""
    model, processor = demo
    words = " ".join(f"{number}" for number in range(60))
    inputs = processor(f"Write backwards: {words}")
    window = model.config.text_config.sliding_window
    assert len(inputs) > window + 20
    with registry.forced():
        plain = answer(model, inputs, 8, prefill_step_size=50)
    metal_sim.mode = "run"
    with registry.forced(*KERNELS):
        tokens = answer(model, inputs, 8, prefill_step_size=50)
    assert tokens == plain
    launched = Counter(launch.name for launch in metal_sim.launches)
    assert launched["sliding_decode"] == 7 * (model.config.text_config.num_hidden_layers - 1)
    assert mx.default_device().type == mx.cpu
