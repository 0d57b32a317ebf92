"""open_source(): the model and its drafter; a drafter converts, verifies, and comes back."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from drafter_checkpoint import write_drafter

from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.plan import plan_conversion
from mlx_gemma4.convert.recipe import read_recipe, recipe_names
from mlx_gemma4.convert.source import Source, check_config, open_source
from mlx_gemma4.convert.verify import verify_checkpoint
from mlx_gemma4.errors import CheckpointError, ConfigError, OptionError

PLAIN = {"pre_projection.weight", "post_projection.weight"}


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small drafter; not to be changed."""
    return write_drafter(tmp_path_factory.mktemp("drafter") / "assistant")


@pytest.fixture
def copy(drafter: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return Path(shutil.copytree(drafter, tmp_path / "copy"))


def arrays(folder: Path) -> dict[str, mx.array]:
    return cast(dict[str, mx.array], mx.load(str(folder / "model.safetensors")))


def change(folder: Path, edit: Callable[[dict[str, mx.array]], object]) -> Path:
    """Rewrite the tensors of a folder."""
    tensors = dict(arrays(folder))
    mx.eval(tensors)
    edit(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    return folder


def configure(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_drafter_is_quantized_but_for_norms_and_projections(
    drafter: Path, tmp_path: Path
) -> None:
    done = convert(open_source(drafter), read_recipe("q4"), tmp_path / "q4")
    plain, converted = arrays(drafter), arrays(tmp_path / "q4")
    expected: dict[str, mx.array] = {}
    for name, array in plain.items():
        if array.ndim != 2 or name in PLAIN:
            expected[name] = array
            continue
        path = name.removesuffix(".weight")
        parts = mx.quantize(array, group_size=64, bits=4)
        expected |= zip((name, f"{path}.scales", f"{path}.biases"), parts, strict=True)
    assert converted.keys() == expected.keys()
    for name, array in expected.items():
        assert converted[name].dtype == array.dtype, name
        assert mx.array_equal(converted[name], array), name
    config = json.loads((tmp_path / "q4" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert config["model_type"] == "gemma4_unified_assistant"
    assert verify_checkpoint(tmp_path / "q4").num_tensors == len(expected)
    assert done.notes == ()
    card = (tmp_path / "q4" / "README.md").read_text()
    assert "This is a drafter" in card
    assert "mlx-gemma4 evaluate" not in card  # which cannot run one


def test_a_drafter_comes_back_as_what_its_codes_mean(drafter: Path, tmp_path: Path) -> None:
    convert(open_source(drafter), read_recipe("q4"), tmp_path / "q4")
    convert(open_source(tmp_path / "q4"), read_recipe("bf16"), tmp_path / "back")
    plain, quantized, back = (arrays(f) for f in (drafter, tmp_path / "q4", tmp_path / "back"))
    assert back.keys() == plain.keys()
    for name, array in back.items():
        assert array.dtype == mx.bfloat16
        path = name.removesuffix(".weight")
        if f"{path}.scales" in quantized:
            parts = (quantized[f"{path}.{part}"] for part in ("scales", "biases"))
            floats = [part.astype(mx.float32) for part in parts]
            exact = mx.dequantize(quantized[name], *floats, group_size=64, bits=4)
            assert mx.array_equal(array, exact.astype(mx.bfloat16)), name
            assert not mx.array_equal(array, plain[name]), name
        else:
            assert mx.array_equal(array, plain[name]), name
    verify_checkpoint(tmp_path / "back")
    assert "quantization" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_bfloat16_of_a_drafter_is_the_drafter(drafter: Path, tmp_path: Path) -> None:
    convert(open_source(drafter), read_recipe("bf16"), tmp_path / "bf16")
    plain, converted = arrays(drafter), arrays(tmp_path / "bf16")
    assert converted.keys() == plain.keys()
    assert all(mx.array_equal(converted[name], array) for name, array in plain.items())
    verify_checkpoint(tmp_path / "bf16")


@pytest.mark.parametrize("recipe", sorted({*recipe_names()} - {"q4", "bf16", "qat-q4_0"}))
def test_every_recipe_that_learns_nothing_takes_a_drafter(
    recipe: str, drafter: Path, tmp_path: Path
) -> None:
    chosen = read_recipe(recipe)
    if chosen.learned:
        with pytest.raises(OptionError, match="is a drafter, which cannot run without the model"):
            convert(open_source(drafter), chosen, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    convert(open_source(drafter), chosen, tmp_path / "out")
    verify_checkpoint(tmp_path / "out")
    converted = arrays(tmp_path / "out")
    assert converted["model.layers.0.mlp.up_proj.weight"].dtype == mx.uint32
    assert converted["pre_projection.weight"].dtype == mx.bfloat16


def test_modules_that_differ_are_listed_by_the_names_in_the_file(
    drafter: Path, tmp_path: Path
) -> None:
    convert(open_source(drafter), read_recipe("mixed-4-8"), tmp_path / "mixed")
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    assert config["quantization"]["model.embed_tokens"]["bits"] == 8
    source = open_source(tmp_path / "mixed")
    assert source.quantization["language_model.embed_tokens"].bits == 8
    assert source.quantization["language_model.layers.3.mlp.up_proj"].bits == 4


def test_a_quantized_drafter_is_not_rounded_again(drafter: Path, tmp_path: Path) -> None:
    convert(open_source(drafter), read_recipe("q8"), tmp_path / "q8")
    with pytest.raises(OptionError, match=r"already quantized .*8-bit.*wants 4-bit"):
        convert(open_source(tmp_path / "q8"), read_recipe("q4"), tmp_path / "out")


def test_a_pattern_that_no_drafter_and_no_model_has_is_an_error(
    drafter: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[modules]]\nmatch = "layers.*"\nbits = 4\n')
    with pytest.raises(OptionError, match="matches no matrix; there are language_model") as error:
        plan_conversion(open_source(drafter), read_recipe(recipe))
    assert "pre_projection" in str(error.value)
    assert "k_proj" not in str(error.value)
    assert "vision" not in str(error.value)


def test_a_damaged_drafter_is_named(copy: Path) -> None:
    change(copy, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: language_model.layers.2.mlp.up_proj"):
        open_source(copy)
    change(copy, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": mx.zeros((3, 64))}))
    with pytest.raises(CheckpointError, match=r"up_proj.weight is \[3, 64\] instead of \[128, 64"):
        open_source(copy)
    change(copy, lambda t: t.update({"model.extra.weight": mx.zeros((3, 64))}))
    with pytest.raises(CheckpointError, match=r"1 unexpected: model.extra.weight"):
        open_source(copy)


def test_codes_without_settings_are_refused(drafter: Path, tmp_path: Path) -> None:
    convert(open_source(drafter), read_recipe("q4"), tmp_path / "q4")
    configure(tmp_path / "q4", lambda c: [c.pop("quantization"), c.pop("quantization_config")])
    with pytest.raises(CheckpointError, match=r"config\.json has no quantization"):
        open_source(tmp_path / "q4")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda config: config.pop("text_config"), "text_config is missing"),
        (lambda config: config.pop("backbone_hidden_size"), "backbone_hidden_size is missing"),
        (lambda config: config.update(backbone_hidden_size=0), "whole number from 1"),
        (lambda config: config["text_config"].update(layer_types=[]), "layer_types"),
        (lambda config: config.update(model_type="gemma3"), "use mlx-lm or mlx-vlm"),
    ],
)
def test_a_config_is_checked_before_there_are_weights(
    edit: Callable[[dict[str, Any]], object], says: str, copy: Path
) -> None:
    (copy / "model.safetensors").unlink()
    check_config(copy)
    configure(copy, edit)
    with pytest.raises(ConfigError, match=says):
        check_config(copy)


# Google's own.


def open_outline(folder: Path, tensors: dict[str, Any], config: Path) -> Source:
    """Open a checkpoint that has nothing but a header: its tensors are a hole in the file."""
    folder.mkdir()
    shutil.copy(config, folder / "config.json")
    header, offset = {}, 0
    for name, tensor in tensors.items():
        count = 2
        for size in tensor["shape"]:
            count *= size
        header[name] = {**tensor, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return open_source(folder)


@pytest.mark.google_files
def test_googles_drafter_has_the_expected_tensors(google_checkpoint: Path, tmp_path: Path) -> None:
    folder = google_checkpoint.parent / "assistant"
    tensors = json.loads((folder / "tensors.json").read_text())
    source = open_outline(tmp_path / "assistant", tensors, folder / "config.json")
    assert len(source.tensors) == 48
    assert source.disk_bytes == 845_713_928  # of the published file, without its header
    plan = plan_conversion(source, read_recipe("q4"))
    names = {tensor.name for shard in plan.shards for tensor in shard.tensors()}
    assert names >= tensors.keys()
    kept = {p.path for p in plan.parameters() if p.settings is None and len(p.shape) == 2}
    assert kept == {"pre_projection", "post_projection"}
    # 4.5 bits for all but the projections, 11.8 M of 422.9 M weights, which have 16.
    assert plan.bits_per_weight == pytest.approx(4.82, abs=0.005)
