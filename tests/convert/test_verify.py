"""verify_checkpoint(): any change of any file is found and named."""

import json
import shutil
from pathlib import Path

import pytest
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.convert.verify import verify_checkpoint
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights import read_header

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small q4 checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("verify")
    write_checkpoint(folder / "source", SMALL, dtype="bfloat16", has_tokenizer=False)
    write_tiny_checkpoint(folder / "source")
    convert(open_source(folder / "source"), read_recipe("q4"), folder / "q4")
    return folder / "q4"


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "q4"))


def test_what_convert_made_is_intact(converted: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verify_checkpoint(converted, progress=lambda *pair: seen.append(pair))
    assert found.num_tensors == len(read_header(converted / "model.safetensors"))
    assert seen[-1] == (found.nbytes, found.nbytes)
    assert found.conversion["recipe"] == "q4"


@pytest.mark.parametrize("which", [0, 37, -1])
def test_one_flipped_bit_is_found_and_its_tensor_named(copy: Path, which: int) -> None:
    file = copy / "model.safetensors"
    tensor = list(read_header(file).values())[which]
    content = bytearray(file.read_bytes())
    content[tensor.offset + tensor.nbytes // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"1 of .* tensors are not as they were") as error:
        verify_checkpoint(copy)
    assert tensor.name in str(error.value)


def test_two_tensors_that_changed_places_are_found(copy: Path) -> None:
    file = copy / "model.safetensors"
    header = read_header(file)
    one, other = (header[f"language_model.model.layers.{k}.input_layernorm.weight"] for k in (0, 1))
    content = bytearray(file.read_bytes())
    first = content[one.offset : one.offset + one.nbytes]
    content[one.offset : one.offset + one.nbytes] = content[
        other.offset : other.offset + other.nbytes
    ]
    content[other.offset : other.offset + other.nbytes] = first
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"2 of .* tensors are not as they were"):
        verify_checkpoint(copy)


def test_a_truncated_file_and_a_missing_one_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        verify_checkpoint(copy)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        verify_checkpoint(copy)


def test_a_config_of_another_model_is_found(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 256
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="wrong shape"):
        verify_checkpoint(copy)


def test_a_missing_tokenizer_is_found(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks tokenizer.json"):
        verify_checkpoint(copy)


def test_a_tensor_without_checksum_is_found(copy: Path) -> None:
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    name = next(iter(index["metadata"]["sha256"]))
    del index["metadata"]["sha256"][name]
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="in the files or in the checksums") as error:
        verify_checkpoint(copy)
    assert name in str(error.value)


@pytest.mark.parametrize("kind", ["no folder", "no index", "foreign index", "nonsense"])
def test_what_convert_did_not_make_is_said_to_be_so(kind: str, copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    message = "was not made by mlx-gemma4 convert"
    if kind == "no folder":
        shutil.rmtree(copy)
        message = "is no folder"
    elif kind == "no index":
        index.unlink()
    elif kind == "foreign index":
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {}}))
    else:
        index.write_text(json.dumps({"metadata": [1], "weight_map": {}}))
    with pytest.raises(CheckpointError, match=message):
        verify_checkpoint(copy)
