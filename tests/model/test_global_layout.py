import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME, config_of, inputs_of, parameters_of

from mlx_gemma4.config import Config
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.model.global_layout import global_permutations

CASE = CASES_BY_NAME["text_decode_real_heads"]
GLOBAL = "language_model.layers.5.self_attn"


def test_the_order_at_the_real_sizes():
    config = Config.from_dict(config_of("real_heads")).text_config
    key, value = global_permutations(config)
    rotated = [*range(64), *range(256, 320)]
    plain = [*range(64, 256), *range(320, 512)]
    assert key.tolist() == rotated + plain
    assert value.tolist() == plain + rotated


@pytest.mark.parametrize(
    ("group_size", "bits", "mode"),
    [(32, 4, "affine"), (64, 8, "affine"), (128, 4, "affine"), (32, 4, "mxfp4"), (16, 4, "nvfp4")],
)
def test_a_quantized_global_layer_says_what_its_dequantized_twin_says(group_size, bits, mode):
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    weights = {
        name.removeprefix("model."): mx.array(array)
        for name, array in parameters_of(config_of(CASE.variant), CASE.seed).items()
    }
    dense, quantization = dict(weights), {}
    for name in ("q_proj", "k_proj", "o_proj"):
        path = f"{GLOBAL}.{name}"
        packed = mx.quantize(weights.pop(f"{path}.weight"), **settings)
        parts = ("weight", "scales", "biases")[: len(packed)]
        weights |= {f"{path}.{part}": array for part, array in zip(parts, packed, strict=True)}
        dense[f"{path}.weight"] = mx.dequantize(*packed, **settings).astype(mx.float32)
        quantization[path] = settings
    config = Config.from_dict(config_of(CASE.variant))
    inputs = inputs_of(CASE).slice(0, 90)
    quantized = np.array(Gemma4.from_weights(config, weights, quantization)(inputs))
    twin = np.array(Gemma4.from_weights(config, dense)(inputs))
    difference(quantized, twin).assert_within(1e-4)
    assert difference(quantized, np.array(model_of(CASE)(inputs))).relative_rms > 1e-3


def test_groups_that_cannot_move_are_refused():
    config = config_of("narrow")  # global heads of 64: runs of 8 dimensions
    weights = {
        name.removeprefix("model."): mx.array(array)
        for name, array in parameters_of(config, 0).items()
    }
    path = f"{GLOBAL}.o_proj"
    packed = mx.quantize(weights.pop(f"{path}.weight"), group_size=32, bits=4)
    weights |= dict(
        zip((f"{path}.weight", f"{path}.scales", f"{path}.biases"), packed, strict=True)
    )
    settings = {"group_size": 32, "bits": 4, "mode": "affine"}
    with pytest.raises(CheckpointError, match="keep this matrix unquantized"):
        Gemma4.from_weights(Config.from_dict(config), weights, {path: settings})
