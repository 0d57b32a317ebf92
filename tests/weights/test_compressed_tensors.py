"""Checkpoints packed by compressed-tensors: every weight is scale * value, and nothing is rounded.

What is packed is drawn and packed here in NumPy; the truth is the same network with plain weights.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from random_checkpoint import Size, write_checkpoint
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.api import load
from mlx_gemma4.config import Config, QuantizationSettings
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.errors import CheckpointError, ConfigError, OptionError
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.weights import Checkpoint, load_weights, open_checkpoint
from mlx_gemma4.weights.compressed_tensors import symmetric_biases

# Global heads of 512, whose runs of 64 plain dimensions groups of 32 fit into.
SMALL = Size(128, 256, 6, 2, 1, 64, 512, 32, 1024)
DOWN = "language_model.layers.0.mlp.down_proj"
# As Google's qat-w4a16-ct has it, with the names that transformers uses in memory.
QUANTIZATION: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": 32,
                "num_bits": 4,
                "observer": "memoryless_minmax",
                "observer_kwargs": {},
                "scale_dtype": None,
                "strategy": "group",
                "symmetric": True,
                "type": "int",
                "zp_dtype": None,
            },
        }
    },
    "format": "pack-quantized",
    "ignore": [
        "lm_head",
        "model.embed_vision.patch_dense",
        "model.embed_vision.multimodal_embedder.embedding_projection",
        "model.embed_audio.embedding_projection",
    ],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.17.1",
}
# compressed-tensors 0.20.0, pack_to_int32(torch.tensor([values], dtype=torch.int8), 4).
PACKED_VALUES = [
    *range(-8, 8),
    *(
        -6,
        4,
        -7,
        -1,
        5,
        -4,
        -3,
        -4,
        3,
        -4,
        7,
        -1,
        -1,
        0,
        1,
        0,
        0,
        7,
        4,
        4,
        3,
        1,
        -3,
        7,
        -1,
        -5,
        5,
        -6,
        5,
        1,
        -7,
        -8,
        -1,
        -8,
        -6,
        0,
        7,
        -1,
        4,
        6,
        5,
        2,
        -1,
        0,
        -4,
        -1,
        -2,
        -5,
    ),
]
PACKED_WORDS = [
    1985229328,
    -19088744,
    1162703298,
    -1987608757,
    -174338824,
    27077943,
    -327187961,
    913606573,
]


def pack(values: np.ndarray) -> np.ndarray:
    """Pack int8 values [out, in] from -8 to 7 into int32 [out, in / 8]."""
    nibbles = (values.astype(np.int64) + 8).reshape(len(values), -1, 8)
    words = (nibbles << (4 * np.arange(8))).sum(-1)
    return words.astype(np.uint32).view(np.int32)


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 towards zero to what bfloat16 has."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def is_packed(name: str) -> bool:
    return ".layers." in name and name.endswith("_proj.weight")


def quantize(weight: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values [out, in] from -8 to 7 and scales [out, in / group_size]."""
    groups = weight.reshape(len(weight), -1, group_size)
    scales = as_bfloat16(np.abs(groups).max(-1) / 7.5)
    values = np.clip(np.rint(groups / scales[..., None]), -8, 7).astype(np.int8)
    return values.reshape(weight.shape), scales


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def set_quantization(folder: Path, quantization: dict[str, Any] | None) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(values))


def write_both(folder: Path, group_size: int = 32) -> tuple[Path, Path]:
    """Write a packed checkpoint, and one with the same weights in floating point."""
    plain = write_checkpoint(folder / "plain", SMALL, has_tokenizer=False)
    write_tiny_checkpoint(plain)
    packed = Path(shutil.copytree(plain, folder / "packed"))
    tensors, parts = read_tensors(plain), {}
    for name, weight in list(tensors.items()):
        if not is_packed(name):
            parts[name] = weight
            continue
        values, scales = quantize(weight, group_size)
        tensors[name] = np.repeat(scales, group_size, axis=1) * values.astype(np.float32)
        parts[f"{name}_packed"] = pack(values)
        parts[f"{name}_scale"] = scales
        parts[f"{name}_shape"] = np.array(weight.shape, np.int64)
    # Stored a second time, as Google's file has it.
    parts["lm_head.weight"] = parts["model.language_model.embed_tokens.weight"]
    save_file(tensors, plain / "model.safetensors")
    save_file(parts, packed / "model.safetensors")
    quantization = json.loads(json.dumps(QUANTIZATION))
    quantization["config_groups"]["group_0"]["weights"]["group_size"] = group_size
    set_quantization(packed, quantization)
    return packed, plain


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a packed checkpoint and its plain twin; not to be changed."""
    return write_both(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def broken(both: tuple[Path, Path], tmp_path: Path) -> Path:
    """Return a copy of the packed one, to be damaged."""
    return Path(shutil.copytree(both[0], tmp_path / "broken"))


def open_folder(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, Config.from_folder(folder))


def logits_of(folder: Path) -> np.ndarray:
    model, _ = load(folder, dtype="float32")
    return np.array(model(ModelInputs.from_ids(range(100, 160))))


def test_packing_here_is_that_of_compressed_tensors() -> None:
    assert pack(np.array([PACKED_VALUES], np.int8)).tolist() == [PACKED_WORDS]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bias_is_exact_for_every_bfloat16_scale(bits: int) -> None:
    """A power of two changes the exponent alone: all of them are tried, against float64."""
    bits_of_finite = np.setdiff1d(
        np.arange(1 << 16), [*range(0x7F80, 0x8000), *range(0xFF80, 1 << 16)]
    )
    scales = mx.array(bits_of_finite.astype(np.uint16)).view(mx.bfloat16)
    biases = symmetric_biases(scales, bits)
    assert biases.dtype == mx.bfloat16
    exact = np.array(scales.astype(mx.float32)).astype(np.float64) * -(2 ** (bits - 1))
    is_usual = np.abs(exact) < 2.0**128
    assert is_usual.sum() > 63_000
    assert np.array_equal(np.array(biases.astype(mx.float32))[is_usual], exact[is_usual])


def test_every_weight_is_the_same(both: tuple[Path, Path]) -> None:
    packed, plain = both
    arrays, settings = load_weights(open_folder(packed), dtype=mx.bfloat16)
    wanted = read_tensors(plain)
    assert settings == {
        name.removeprefix("model.").removesuffix(".weight"): {
            "group_size": 32,
            "bits": 4,
            "mode": "affine",
        }
        for name in filter(is_packed, wanted)
    }
    for path in settings:
        parts = (arrays[f"{path}.{part}"] for part in ("weight", "scales", "biases"))
        weight, scales, biases = parts
        assert weight.dtype == mx.uint32
        assert scales.dtype == biases.dtype == mx.bfloat16
        found = mx.dequantize(
            weight,
            scales.astype(mx.float32),
            biases.astype(mx.float32),
            group_size=32,
            bits=4,
        )
        assert np.array_equal(np.array(found), wanted[f"model.{path}.weight"]), path


def test_it_converts_without_loss(both: tuple[Path, Path], tmp_path: Path) -> None:
    packed, _ = both
    convert(open_source(packed), read_recipe("qat-q4_0"), tmp_path / "out")
    taken, settings = load_weights(open_folder(tmp_path / "out"), dtype=mx.bfloat16)
    original, packed_settings = load_weights(open_folder(packed), dtype=mx.bfloat16)
    assert packed_settings.items() <= settings.items()
    for path in packed_settings:
        for part in ("weight", "scales", "biases"):
            assert mx.array_equal(taken[f"{path}.{part}"], original[f"{path}.{part}"]), path
    convert(open_source(packed), read_recipe("bf16"), tmp_path / "plain")
    plain, _ = load_weights(open_folder(tmp_path / "plain"), dtype=mx.bfloat16)
    wanted = read_tensors(both[1])
    for path in packed_settings:
        found = np.array(plain[f"{path}.weight"].astype(mx.float32))
        rounded = mx.array(wanted[f"model.{path}.weight"]).astype(mx.bfloat16)
        assert np.array_equal(found, np.array(rounded.astype(mx.float32))), path
    with pytest.raises(OptionError, match="already quantized"):
        convert(open_source(packed), read_recipe("q4"), tmp_path / "q4")


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_logits_are_those_of_the_plain_weights(tmp_path: Path, group_size: int) -> None:
    packed, plain = write_both(tmp_path, group_size)
    difference(logits_of(packed), logits_of(plain)).assert_within(2e-5)


def test_nothing_is_read_until_it_is_used(broken: Path) -> None:
    """Words that are overwritten after loading are seen as they are then."""
    arrays, _ = load_weights(open_folder(broken), dtype=mx.float32)
    with safe_open(broken / "model.safetensors", "numpy") as file:
        words = file.get_tensor(f"model.{DOWN}.weight_packed")
    content = bytearray((broken / "model.safetensors").read_bytes())
    start = bytes(content).index(words.tobytes())
    with (broken / "model.safetensors").open("r+b") as stream:  # the file that MLX has open
        stream.seek(start)
        stream.write(bytes(words.nbytes))
    assert not np.array(arrays[f"{DOWN}.weight"]).any()


def test_memory_and_notes_are_right(both: tuple[Path, Path]) -> None:
    checkpoint = open_folder(both[0])
    for dtype in (mx.bfloat16, mx.float32):
        arrays, _ = load_weights(checkpoint, dtype=dtype)
        assert checkpoint.memory_bytes(dtype.size) == sum(a.nbytes for a in arrays.values())
    assert checkpoint.notes == ("lm_head.weight repeats the embedding and was left out",)
    assert checkpoint.quantization[DOWN] == QuantizationSettings(32, 4, "affine")
    assert set(checkpoint.symmetric) == set(checkpoint.quantization)
    assert open_folder(both[1]).symmetric == ()
    with pytest.raises(OptionError, match="already quantized to 4 bits"):
        load(both[0], quantize=8)


@pytest.mark.google_files
def test_googles_own_names_and_config_are_read(google_checkpoint: Path, tmp_path: Path) -> None:
    """Headers of the 10 GB file as it is, with holes for tensors: only shapes are written."""
    folder = google_checkpoint.parent / "qat"
    values = json.loads((google_checkpoint / "config.json").read_text())
    text = (folder / "w4a16-ct.quantization_config.RECONSTRUCTED.json").read_text()
    values["quantization_config"] = json.loads(text)
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors = json.loads((folder / "w4a16-ct.tensors.json").read_text())
    del tensors["lm_head.weight"]  # 2 GB that would be compared
    offset, header, shapes = 0, {}, {}
    for name, tensor in tensors.items():
        size = {"BF16": 2, "I32": 4, "I64": 8}[tensor["dtype"]] * int(np.prod(tensor["shape"]))
        header[name] = tensor | {"data_offsets": [offset, offset + size]}
        if name.endswith("weight_shape"):
            rows, words = tensors[name.replace("_shape", "_packed")]["shape"]
            shapes[offset] = np.array([rows, 8 * words], np.int64).tobytes()
        offset += size
    content = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        start = file.tell()
        file.truncate(start + offset)
        for at, stated in shapes.items():
            file.seek(start + at)
            file.write(stated)
    checkpoint = open_folder(tmp_path)
    assert len(checkpoint.symmetric) == 328
    assert not any(path.startswith(("vision", "embed")) for path in checkpoint.quantization)


def change_group(path: str, value: Any) -> dict[str, Any]:
    """Return the quantization config with one value changed, by its path."""
    quantization = json.loads(json.dumps(QUANTIZATION))
    values = quantization
    *parents, key = path.split(".")
    for parent in parents:
        values = values[parent]
    values[key] = value
    return quantization


GROUP = "config_groups.group_0"
REFUSED = [
    (f"{GROUP}.weights.num_bits", 8),
    (f"{GROUP}.weights.num_bits", None),
    (f"{GROUP}.weights.symmetric", False),
    (f"{GROUP}.weights.actorder", "group"),
    (f"{GROUP}.weights.strategy", "channel"),
    (f"{GROUP}.weights.strategy", "tensor"),
    (f"{GROUP}.weights.type", "float"),
    (f"{GROUP}.weights.dynamic", True),
    (f"{GROUP}.weights.group_size", 16),
    (f"{GROUP}.weights.group_size", None),
    (f"{GROUP}.weights.group_size", 32.0),
    (f"{GROUP}.weights.block_structure", [128, 128]),
    (f"{GROUP}.weights.rotation", "hadamard"),
    (f"{GROUP}.weights", None),
    (f"{GROUP}.format", "marlin-24"),
    (f"{GROUP}.input_activations", {"num_bits": 8}),
    (f"{GROUP}.output_activations", {"num_bits": 8}),
    ("config_groups.group_0", None),
    ("config_groups", {}),
    ("config_groups", None),
    ("format", "int-quantized"),
    ("format", None),
    ("quantization_status", "frozen"),
    ("kv_cache_scheme", {"num_bits": 8}),
    ("sparsity_config", {"format": "sparse-24-bitmask"}),
    ("transform_config", {"config_groups": {"R1": {}}}),
    ("ignore", "lm_head"),
    ("quant_method", "gptq"),
]


@pytest.mark.parametrize(("path", "value"), REFUSED)
def test_what_is_packed_otherwise_is_refused_by_its_key(
    broken: Path, path: str, value: object
) -> None:
    set_quantization(broken, change_group(path, value))
    with pytest.raises(ConfigError) as caught:
        load(broken)
    assert f"quantization_config.{path} is " in str(caught.value)
    assert len(str(caught.value)) < 400


def test_groups_of_different_sizes_are_refused(broken: Path) -> None:
    group = QUANTIZATION["config_groups"]["group_0"]
    other = group | {"weights": group["weights"] | {"group_size": 128}}
    set_quantization(broken, change_group("config_groups", {"group_0": group, "group_1": other}))
    with pytest.raises(ConfigError, match=r'"group_0": 32, "group_1": 128.* groups of one size'):
        load(broken)


def save(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = read_tensors(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def drop(part: str) -> Callable[[Path], None]:
    return lambda folder: save(folder, lambda tensors: tensors.pop(f"model.{DOWN}.{part}"))


def put(part: str, value: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: save(folder, lambda t: t.__setitem__(f"model.{DOWN}.{part}", value))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no words": (drop("weight_packed"), r"1 parts .* missing: .*down_proj\.weight_packed"),
    "no scale": (drop("weight_scale"), r"1 parts .* missing: .*down_proj\.weight_scale"),
    "no shape": (drop("weight_shape"), r"1 parts .* missing: .*down_proj\.weight_shape"),
    "other shape": (
        put("weight_shape", np.array([128, 248], np.int64)),
        r"down_proj\.weight_shape says \[128, 248\], and the packed words are \[128, 256\]",
    ),
    "shape of another kind": (
        put("weight_shape", np.array([128, 256], np.int32)),
        r"down_proj\.weight_shape is I32 \[2\] instead of I64 \[2\]",
    ),
    "words of another kind": (
        put("weight_packed", np.zeros((128, 32), np.float32)),
        r"down_proj\.weight_packed is F32 \[128, 32\] instead of I32",
    ),
    "words too few": (
        lambda folder: save(
            folder,
            lambda tensors: tensors.update(
                {
                    f"model.{DOWN}.weight_packed": np.zeros((128, 16), np.int32),
                    f"model.{DOWN}.weight_shape": np.array([128, 128], np.int64),
                }
            ),
        ),
        r"down_proj\.weight_packed is \[128, 16\] instead of \[128, 32\]",
    ),
    "scales too few": (
        put("weight_scale", np.zeros((128, 1), np.float32)),
        r"down_proj\.weight_scale is \[128, 1\] instead of \[128, 8\]",
    ),
    "scales of another kind": (
        put("weight_scale", np.zeros((128, 8), np.int32)),
        r"down_proj\.weight_scale is I32 instead of BF16 or F16 or F32",
    ),
    "asymmetric after all": (
        put("weight_zero_point", np.zeros((16, 8), np.int32)),
        r"1 unexpected: model\.language_model\.layers\.0\.mlp\.down_proj\.weight_zero_point",
    ),
    "reordered after all": (
        put("weight_g_idx", np.zeros(256, np.int32)),
        r"1 unexpected: .*down_proj\.weight_g_idx",
    ),
    "plain as well": (
        put("weight", np.zeros((128, 256), np.float32)),
        r"1 modules are packed and plain at once: language_model\.layers\.0\.mlp\.down_proj",
    ),
    "ignored after all": (
        lambda folder: set_quantization(
            folder, change_group("ignore", ["lm_head", f"model.{DOWN}"])
        ),
        r"1 modules are packed that quantization_config\.ignore names: language_model\.layers\.0",
    ),
    "config of the plain model": (
        lambda folder: set_quantization(folder, None),
        r"41 modules are packed by compressed-tensors .*has no quantization_config of that kind",
    ),
    "config of an MLX model": (
        lambda folder: set_quantization(folder, {"group_size": 32, "bits": 4}),
        r"has no quantization_config of that kind; take the config\.json that belongs",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_module_is_named(broken: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    break_it(broken)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_folder(broken)
    assert str(broken) in str(caught.value)
    assert len(str(caught.value)) < 2500


def test_a_module_that_was_left_plain_is_read(broken: Path, both: tuple[Path, Path]) -> None:
    weight = read_tensors(both[1])[f"model.{DOWN}.weight"]

    def unpack(tensors: dict[str, np.ndarray]) -> None:
        for part in ("weight_packed", "weight_scale", "weight_shape"):
            del tensors[f"model.{DOWN}.{part}"]
        tensors[f"model.{DOWN}.weight"] = weight

    save(broken, unpack)
    assert DOWN not in open_folder(broken).quantization
    difference(logits_of(broken), logits_of(both[1])).assert_within(2e-5)
