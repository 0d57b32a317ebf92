"""A quantized checkpoint against transformers on its dequantized weights, pictures and sounds too.

transformers reads no such file: it is given, in float32, what codes and scales mean; or the folder
that `--recipe bf16` makes, which rounds that to bfloat16.
"""

import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from demo_prompts import demo_prompts, inputs_of

from mlx_gemma4.api import load
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.weights import canonical_name

pytestmark = pytest.mark.parity

# A picture, two pictures, a sound, all media at once, and text.
PROMPTS = (0, 8, 36, 20, 38, 40)
RECIPES = ("q4", "mxfp4", "mixed-4-8")


def dequantized(folder: Path) -> dict[str, np.ndarray]:
    """Return every parameter in float32 under Google's names."""
    arrays = cast(dict[str, mx.array], mx.load(str(folder / "model.safetensors")))
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    default = {key: quantization[key] for key in ("group_size", "bits", "mode")}
    parameters: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        path, _, part = name.rpartition(".")
        if part in ("scales", "biases"):
            continue
        if f"{path}.scales" in arrays:
            scales, biases = arrays[f"{path}.scales"], arrays.get(f"{path}.biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            settings = quantization.get(path, default)
            array = mx.dequantize(array, scales, biases, dtype=mx.float32, **settings)
        parameters[f"model.{canonical_name(name)}"] = np.array(array.astype(mx.float32))
    return parameters


@pytest.fixture(scope="module", params=RECIPES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo checkpoint by a recipe."""
    folder = tmp_path_factory.mktemp("quantized") / request.param
    convert(open_source(find_checkpoint("demo")), read_recipe(request.param), folder)
    return folder


@pytest.fixture(scope="module")
def pair(converted: Path) -> tuple[Any, Any, Any]:
    """Return the reference on dequantized weights, and model and processor of the folder."""
    from transformers_reference import reference_model

    config = json.loads((converted / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    return reference_model(config, dequantized(converted)), *load(converted)


@pytest.mark.parametrize("index", PROMPTS)
def test_codes_mean_what_transformers_computes_with(pair: Any, index: int) -> None:
    from transformers_reference import reference_logits

    reference, model, processor = pair
    inputs = inputs_of(processor, demo_prompts()[index])
    found = difference(np.array(model(inputs)), reference_logits(reference, inputs))
    print(f"\nprompt {index}, {len(inputs)} tokens: {found}")
    found.assert_within(2e-5)


def test_bfloat16_of_it_loads_in_transformers(converted: Path, tmp_path: Path) -> None:
    import torch
    from transformers import Gemma4UnifiedForConditionalGeneration
    from transformers_reference import reference_logits

    convert(open_source(converted), read_recipe("bf16"), tmp_path / "back")
    reference, report = Gemma4UnifiedForConditionalGeneration.from_pretrained(
        str(tmp_path / "back"),
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model, processor = load(tmp_path / "back")
    quantized, _ = load(converted)
    for index in PROMPTS:
        inputs = inputs_of(processor, demo_prompts()[index])
        expected = reference_logits(reference.eval(), inputs)
        found = difference(np.array(model(inputs)), expected)
        rounded = difference(np.array(quantized(inputs)), expected)
        print(f"\nprompt {index}: the same weights {found}; before their rounding {rounded}")
        found.assert_within(2e-5)
        if converted.name == "mxfp4":
            rounded.assert_within(2e-5)  # bfloat16 has every value of it
        else:
            # Each weight is rounded by up to 2**-9 of itself.
            assert rounded.relative_rms < 2**-8
