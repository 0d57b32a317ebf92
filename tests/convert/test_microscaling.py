"""Microscaling: the codes and scales of mx.quantize, bit for bit, sooner."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.api import load
from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.convert import microscaling
from mlx_gemma4.convert.microscaling import encode
from mlx_gemma4.inputs import ModelInputs

MODES = {
    "mxfp4": QuantizationSettings(32, 4, "mxfp4"),
    "nvfp4": QuantizationSettings(16, 4, "nvfp4"),
    "mxfp8": QuantizationSettings(32, 8, "mxfp8"),
}
FLOATS = (mx.bfloat16, mx.float16, mx.float32)
SHAPE = (24, 256)


def any_bits(rng: np.random.Generator) -> np.ndarray:
    """Every exponent of bfloat16, subnormal and huge, in one group."""
    bits = rng.integers(0, 1 << 16, SHAPE).astype(np.uint32) << 16
    return bits.view(np.float32)


def of_any_size(rng: np.random.Generator) -> np.ndarray:
    """Rows that are each of one magnitude, from subnormal to the largest."""
    exponents = rng.integers(-149, 120, (SHAPE[0], 1))
    return (rng.standard_normal(SHAPE) * 2.0**exponents).astype(np.float32)


def on_ties(rng: np.random.Generator) -> np.ndarray:
    """Multiples of a quarter: half of them lie between two values of E2M1."""
    values = rng.integers(-28, 29, SHAPE) * np.float32(0.25)
    values[:, ::32], values[:, 16::32] = 6, -6
    return values.astype(np.float32)


def mostly_zero(rng: np.random.Generator) -> np.ndarray:
    """Groups with nothing, with one value, and with zeros of both signs."""
    values = rng.standard_normal(SHAPE) * (rng.random(SHAPE) < 0.03)
    return (values * rng.choice([-1.0, 1.0], SHAPE)).astype(np.float32)


INPUTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.standard_normal(SHAPE, np.float32) * np.float32(0.02),
    "any bits": any_bits,
    "of any size": of_any_size,
    "ties": on_ties,
    "mostly zero": mostly_zero,
}


def finite(values: np.ndarray, dtype: mx.Dtype) -> mx.array:
    rows = mx.array(values).astype(dtype)
    return mx.where(mx.isfinite(rows), rows, mx.zeros_like(rows))


def quantize(rows: mx.array, settings: QuantizationSettings) -> dict[str, mx.array]:
    # On the CPU, whatever the device is: that is what is promised.
    weight, scales, *_ = mx.quantize(
        rows,
        group_size=settings.group_size,
        bits=settings.bits,
        mode=settings.mode,
        stream=mx.cpu,
    )
    return {"weight": weight, "scales": scales}


def assert_same(ours: dict[str, mx.array], wanted: dict[str, mx.array]) -> None:
    assert ours.keys() == wanted.keys()
    for part, array in wanted.items():
        assert ours[part].dtype == array.dtype
        assert ours[part].shape == array.shape
        assert mx.array_equal(ours[part], array), part


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="a GPU rounds ties otherwise")
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_codes_and_scales_are_those_of_mlx(
    rng: np.random.Generator, mode: str, dtype: mx.Dtype, kind: str
) -> None:
    rows = finite(INPUTS[kind](rng), dtype)
    assert_same(encode(rows, MODES[mode]), quantize(rows, MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
def test_values_are_the_nearest_of_the_format(rng: np.random.Generator, mode: str) -> None:
    """Against the format's definition, with no MLX: E2M1 or E4M3 times the scale of the group."""
    settings = MODES[mode]
    rows = rng.standard_normal(SHAPE, np.float32) * np.float32(0.02)
    parts = encode(mx.array(rows).astype(mx.bfloat16), settings)
    rows = np.array(mx.array(rows).astype(mx.bfloat16).astype(mx.float32))
    rows = rows.reshape(-1, settings.group_size).astype(np.float64)
    scale_bytes = np.array(parts["scales"]).reshape(-1, 1)
    e4m3 = [fraction / 512 for fraction in range(8)]
    e4m3 += [(1 + fraction / 8) * 2.0**power for power in range(-6, 9) for fraction in range(8)]
    values = np.array(e4m3[:-1] if settings.bits == 8 else [0, 0.5, 1, 1.5, 2, 3, 4, 6])
    is_nvfp4 = mode == "nvfp4"
    scales = np.array(e4m3)[scale_bytes] if is_nvfp4 else 2.0 ** (scale_bytes.astype(float) - 127)
    content = np.array(parts["weight"]).view(np.uint8).reshape(len(rows), -1)
    if settings.bits == 4:
        content = np.stack([content & 15, content >> 4], axis=-1).reshape(len(rows), -1)
    sign_bit = 1 << (settings.bits - 1)
    signs = np.where(content & sign_bit, -1.0, 1.0)
    found = signs * values[content & (sign_bit - 1)] * scales
    both = np.concatenate([-values, values])
    nearest = np.abs(rows[..., None] / scales[..., None] - both).min(-1) * scales
    # bfloat16 rounds weight / scale before a code is chosen, by at most 1/256 of it.
    assert (np.abs(found - rows) <= nearest + 2**-8 * np.abs(rows) + 1e-12).all()
    # The largest of a group sets the scale, so that nothing is cut off.
    if is_nvfp4:  # whose scale is rounded to nearest, in steps of 1/512 where it is small
        scales = scales * (1 + 2**-4) + 2**-10
    assert (np.abs(rows) <= values[-1] * scales * (1 + 2**-8)).all()


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_steps_do_not_show(
    rng: np.random.Generator, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = finite(INPUTS["normal"](rng), mx.bfloat16)
    whole = encode(rows, MODES[mode])
    monkeypatch.setattr(microscaling, "_STEP_WEIGHTS", 7 * 32)
    assert_same(encode(rows, MODES[mode]), whole)
    assert_same(encode(rows[5:6], MODES[mode]), {k: part[5:6] for k, part in whole.items()})


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="MLX's own on a GPU")
@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_is_several_times_as_fast(rng: np.random.Generator, mode: str) -> None:
    rows = mx.array(rng.standard_normal((256, 1024), np.float32)).astype(mx.bfloat16)
    mx.eval(rows, *encode(rows[:1], MODES[mode]).values())  # and the table is there

    def processor_s(function: Callable[[mx.array, QuantizationSettings], object]) -> float:
        start = time.process_time()
        mx.eval(function(rows, MODES[mode]))
        return time.process_time() - start

    assert min(processor_s(encode) for _ in range(3)) < processor_s(quantize) / 3


# Global heads of 512, whose runs of 64 plain dimensions are moved in whole groups of 16 and 32; and
# a width whose root, by which embeddings are scaled, is not a bfloat16 number.
SMALL = Size(96, 128, 6, 2, 1, 64, 512, 32, 1024)
MIXTURES = {
    "mxfp4": ("mxfp4", "mxfp4"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "mixed": ("nvfp4", "mxfp8"),
}


def write_both(folder: Path, layers: str, embedding: str) -> tuple[Path, Path]:
    """Write a checkpoint in the modes of its layers and its embedding, and a plain twin."""
    for kind in ("encoded", "plain"):
        write_checkpoint(folder / kind, SMALL, has_tokenizer=False)
        write_tiny_checkpoint(folder / kind)
    plain = dict(cast(dict[str, mx.array], mx.load(str(folder / "plain" / "model.safetensors"))))
    encoded, quantization = dict(plain), asdict(MODES[layers])
    for name in list(plain):
        is_embedding = name.endswith("embed_tokens.weight")
        if not is_embedding and not (".layers." in name and name.endswith("_proj.weight")):
            continue
        settings = MODES[embedding if is_embedding else layers]
        path = name.removesuffix(".weight")
        parts = encode(plain[name].astype(mx.bfloat16), settings)
        encoded |= {f"{path}.{part}": array for part, array in parts.items()}
        plain[name] = mx.dequantize(
            parts["weight"], parts["scales"], **asdict(settings), dtype=mx.float32
        )
        if is_embedding and embedding != layers:
            quantization[path] = asdict(settings)
    for kind, arrays in (("plain", plain), ("encoded", encoded)):
        mx.eval(arrays)
        mx.save_safetensors(str(folder / kind / "model.safetensors"), arrays)
    config = json.loads((folder / "encoded" / "config.json").read_text())
    config["quantization"] = quantization
    (folder / "encoded" / "config.json").write_text(json.dumps(config))
    return folder / "encoded", folder / "plain"


def logits_of(folder: Path) -> np.ndarray:
    model, _ = load(folder, dtype="float32")
    return np.array(model(ModelInputs.from_ids(range(100, 160))))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_checkpoint_says_what_its_plain_twin_says(tmp_path: Path, mixture: str) -> None:
    """Tied embedding and permuted global layers included."""
    encoded, plain = write_both(tmp_path, *MIXTURES[mixture])
    model, _ = load(encoded, dtype="float32")
    assert model.language_model.embed_tokens.mode == MIXTURES[mixture][1]
    difference(logits_of(encoded), logits_of(plain)).assert_within(5e-5)
