"""Random checkpoints have Google's names and shapes, and are the same for the same seed."""

import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from random_checkpoint import PLACEHOLDERS, SIZES, Size, list_tensors, write_checkpoint

SMALL = Size(64, 128, 6, 2, 1, 32, 64, 32, 1280)


@pytest.mark.google_files
def test_real_size_is_googles(google_checkpoint: Path) -> None:
    listed = json.loads((google_checkpoint / "tensors.json").read_text())
    published = {name: tuple(entry["shape"]) for name, entry in listed.items()}
    assert {tensor.name: tensor.shape for tensor in list_tensors(SIZES["real"])} == published


def test_values_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def load(name: str, **options: Any) -> dict[str, mx.array]:
        folder = write_checkpoint(tmp_path / name, SMALL, has_tokenizer=False, **options)
        arrays: dict[str, mx.array] = {}
        for path in sorted(folder.glob("*.safetensors")):
            arrays |= cast(dict[str, mx.array], mx.load(str(path)))
        return arrays

    one, other = load("one"), load("other", seed=1)
    sharded = load("sharded", num_shards=3, dtype="bfloat16", rename="renamed.{}".format)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) == 3
    for name, array in one.items():
        assert not mx.array_equal(array, other[name])
        assert mx.array_equal(array.astype(mx.bfloat16), sharded[f"renamed.{name}"])
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(sharded)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in sharded.values())


def test_every_id_of_the_vocabulary_is_a_token(tmp_path: Path) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<|tool_response>", "<turn|>", *PLACEHOLDERS.values()]
    added = [{"id": 3 * index, "content": token} for index, token in enumerate(special)]
    vocab = {token["content"]: token["id"] for token in added} | {"word": 500}
    form = {"added_tokens": added, "model": {"vocab": vocab}}
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).write_text(json.dumps(form))

    folder = write_checkpoint(tmp_path / "checkpoint", SMALL, tokenizer_from=source)
    written = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocab.items() <= written.items()
    assert sorted(written.values()) == list(range(SMALL.vocab_size))
    config = json.loads((folder / "config.json").read_text())
    assert config["image_token_id"] == vocab["<|image|>"]
