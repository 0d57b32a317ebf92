from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from quantized_checkpoint import write_quantized

from mlx_gemma4.api import load
from mlx_gemma4.config import Config
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.model.fuse import fuse_projections, join_rows
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.model.linear import Linear, QuantizedLinear
from mlx_gemma4.weights import load_weights, open_checkpoint


def unfused(folder):
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    weights, quantization = load_weights(checkpoint, dtype=mx.float32)
    return Gemma4.from_weights(checkpoint.config, weights, quantization)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_logits_are_the_same(tmp_path, bits):
    folder = find_checkpoint("demo")
    if bits:
        folder = write_quantized(folder, tmp_path / "quantized", bits=bits)
    plain = unfused(folder)
    fused = unfused(folder)
    fuse_projections(fused.language_model)
    for layer in fused.language_model.layers:
        assert {"q_proj", "k_proj", "v_proj"}.isdisjoint(layer.self_attn)
        assert "qkv_proj" in layer.self_attn
    tokens = mx.arange(3, 60)[None]
    for model in (plain, fused):
        mx.eval(model.parameters())
    ours, expected = (
        np.array(model.forward(tokens, [], (), model.make_cache())) for model in (fused, plain)
    )
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_no_weight_is_lost(tiny_checkpoint):
    plain, fused = unfused(tiny_checkpoint), unfused(tiny_checkpoint)
    fuse_projections(fused.language_model)
    counts = [
        sum(array.size for _, array in cast(Any, tree_flatten(model.parameters())))
        for model in (plain, fused)
    ]
    assert counts[0] == counts[1]


def test_load_fuses(tiny_checkpoint):
    model, _ = load(tiny_checkpoint)
    assert all("qkv_proj" in layer.self_attn for layer in model.language_model.layers)


def linear(rows, dtype=mx.float32, bias=False, columns=64):
    module = Linear(columns, rows, bias=bias)
    module.weight = module.weight.astype(dtype)
    return module


@pytest.mark.parametrize(
    "modules",
    [
        [linear(8), linear(8, mx.bfloat16)],
        [linear(8), linear(8, bias=True)],
        [linear(8), linear(8).to_quantized(64, 4)],
        [linear(8).to_quantized(64, 8), linear(8).to_quantized(64, 4)],
        [linear(8).to_quantized(32, 4), linear(8).to_quantized(64, 4)],
        [linear(8).to_quantized(32, 4), linear(8).to_quantized(32, 4, "mxfp4")],
    ],
    ids=["dtypes", "bias", "plain and quantized", "bits", "group sizes", "modes"],
)
def test_matrices_stored_in_different_ways_stay_apart(modules):
    assert join_rows(modules) is None


@pytest.mark.parametrize(
    "settings",
    [(32, 4, "affine"), (128, 8, "affine"), (32, 4, "mxfp4"), (32, 8, "mxfp8"), (16, 4, "nvfp4")],
    ids=str,
)
def test_rows_stand_one_after_the_other(settings):
    modules = [
        linear(8, columns=256).to_quantized(*settings),
        linear(4, columns=256).to_quantized(*settings),
    ]
    joined = join_rows(modules)
    assert isinstance(joined, QuantizedLinear)
    x = mx.random.normal((2, 256))
    apart = mx.concatenate([module(x) for module in modules], axis=-1)
    assert np.array(joined(x)).tolist() == np.array(apart).tolist()
