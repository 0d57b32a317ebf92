"""Weights: every layout on disk gives the same parameters, and a damaged one is named."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from random_checkpoint import Size, write_checkpoint

from mlx_gemma4.config import Config
from mlx_gemma4.errors import CheckpointError, OptionError
from mlx_gemma4.weights import (
    Checkpoint,
    canonical_name,
    expected_tensors,
    load_weights,
    open_checkpoint,
    read_header,
)

SMALL = Size(64, 128, 6, 2, 1, 64, 128, 32, 1024)
INDEX = "model.safetensors.index.json"


def as_mlx_names(name: str) -> str:
    """Rename as mlx-lm and mlx-vlm do: Google's name to theirs."""
    return name.removeprefix("model.").replace("language_model.", "language_model.model.")


def as_transformers_names(name: str) -> str:
    """Rename as transformers 5 does in memory, and some fine-tunes on disk."""
    name = name.replace("vision_embedder.", "embed_vision.")
    return name.replace(
        "embed_vision.embedding_projection", "embed_vision.multimodal_embedder.embedding_projection"
    )


LAYOUTS: dict[str, dict[str, Any]] = {
    "google": {},
    "google in shards": {"num_shards": 3},
    "transformers": {"rename": as_transformers_names},
    "mlx": {"rename": as_mlx_names, "num_shards": 2},
}


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small checkpoint as Google saves it; not to be changed."""
    folder = tmp_path_factory.mktemp("weights") / "google"
    return write_checkpoint(folder, SMALL, has_tokenizer=False)


@pytest.fixture
def broken(google: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return Path(shutil.copytree(google, tmp_path / "broken"))


def open_folder(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, Config.from_folder(folder))


def load_folder(folder: Path, **options: Any) -> tuple[dict[str, mx.array], dict[str, Any]]:
    options = {"dtype": mx.float32} | options
    return load_weights(open_folder(folder), **options)


def stored(folder: Path) -> dict[str, mx.array]:
    return dict(cast(dict[str, mx.array], mx.load(str(folder / "model.safetensors"))))


def store(folder: Path, arrays: dict[str, mx.array], **config: Any) -> Path:
    """Replace the weights of a checkpoint, and add to its config."""
    mx.eval(list(arrays.values()))  # they may still lie, unread, in the file that is replaced
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def set_config(folder: Path, section: str, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    values[section] |= changes
    (folder / "config.json").write_text(json.dumps(values))


def assert_same(arrays: dict[str, mx.array], wanted: dict[str, mx.array]) -> None:
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        assert array.dtype == wanted[name].dtype, name
        assert mx.array_equal(array, wanted[name]), name


@pytest.mark.google_files
@pytest.mark.parametrize("kind", ["it", "base"])
def test_expected_tensors_are_googles(google_checkpoint: Path, kind: str) -> None:
    folder = google_checkpoint.parent / kind
    tensors = json.loads((folder / "tensors.json").read_text())
    found = {canonical_name(name): tuple(of["shape"]) for name, of in tensors.items()}
    expected = expected_tensors(Config.from_folder(folder))
    assert expected == found
    assert len(expected) == 677
    assert sum(math.prod(shape) for shape in expected.values()) == 11_959_730_176 + 48


@pytest.mark.google_files
def test_all_layouts_of_googles_names_are_one(google_checkpoint: Path) -> None:
    for name in json.loads((google_checkpoint / "tensors.json").read_text()):
        canonical = name.removeprefix("model.")
        assert canonical_name(name) == canonical
        assert canonical_name(as_mlx_names(name)) == canonical
        assert canonical_name(as_transformers_names(name)) == canonical


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_parameters(google: Path, tmp_path: Path, layout: str) -> None:
    write_checkpoint(tmp_path, SMALL, has_tokenizer=False, **LAYOUTS[layout])
    arrays, quantization = load_folder(tmp_path)
    assert quantization == {}
    assert {name: array.shape for name, array in arrays.items()} == expected_tensors(
        Config.from_folder(tmp_path)
    )
    assert_same(arrays, {canonical_name(name): array for name, array in stored(google).items()})


def test_our_own_layout_gives_the_same_parameters(broken: Path) -> None:
    arrays, quantization = load_folder(broken, quantize=4)
    config = {"group_size": 64, "bits": 4, "mode": "affine"}
    store(broken, {f"model.{name}": a for name, a in arrays.items()}, quantization=config)
    again, settings = load_folder(broken)
    assert_same(again, arrays)
    assert settings == quantization
    assert settings["language_model.embed_tokens"] == config


def test_a_conversion_of_mlx_lm_is_read_and_quantizing_is_the_same(
    google: Path, tmp_path: Path
) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(google, lazy=True)[:2]
    model, config = quantize_model(model, config, 64, 8)
    save_model(tmp_path, model)
    save_config(config, tmp_path / "config.json")
    converted, settings = load_folder(tmp_path)
    ours, our_settings = load_folder(google, quantize=8)
    # mlx-lm leaves the front ends out.
    decoder = {name: a for name, a in ours.items() if name.startswith("language_model.")}
    assert_same(converted, decoder)
    assert settings == our_settings


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [
        *(("affine", bits, 32) for bits in (2, 3, 4, 5, 6, 8)),
        ("mxfp4", 4, 32),
        ("mxfp8", 8, 32),
        ("nvfp4", 4, 16),
    ],
)
def test_reads_every_mode_where_there_are_scales(
    broken: Path, mode: str, bits: int, group_size: int
) -> None:
    # As conversions of June have it: the patch matrix is quantized too, one projection is not.
    paths = ["language_model.layers.0.mlp.down_proj", "vision_embedder.patch_dense"]
    arrays = {canonical_name(name): array for name, array in stored(broken).items()}
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    wanted = dict(arrays)
    for path in paths:
        parts = mx.quantize(arrays[f"{path}.weight"], **settings)
        wanted |= {
            f"{path}.{part}": array
            for part, array in zip(("weight", "scales", "biases"), parts, strict=False)
        }
    store(broken, {as_mlx_names(f"model.{n}"): a for n, a in wanted.items()}, quantization=settings)
    found, quantization = load_folder(broken)
    assert_same(found, wanted)
    assert quantization == dict.fromkeys(paths, settings)
    assert "vision_embedder.patch_dense.bias" in found


def test_overrides_are_found_under_the_names_of_the_conversion(broken: Path) -> None:
    arrays = stored(broken)
    for path, bits in (("mlp.up_proj", 4), ("mlp.down_proj", 8)):
        name = f"model.language_model.layers.2.{path}"
        weight, scales, biases = mx.quantize(arrays[f"{name}.weight"], 64, bits)
        arrays |= {f"{name}.weight": weight, f"{name}.scales": scales, f"{name}.biases": biases}
    override = {"language_model.model.layers.2.mlp.down_proj": {"group_size": 64, "bits": 8}}
    store(broken, arrays, quantization={"group_size": 64, "bits": 4, **override})
    _, quantization = load_folder(broken)
    assert {path: settings["bits"] for path, settings in quantization.items()} == {
        "language_model.layers.2.mlp.up_proj": 4,
        "language_model.layers.2.mlp.down_proj": 8,
    }


def test_casts_floats_and_nothing_else(google: Path) -> None:
    arrays, _ = load_folder(google, dtype=mx.bfloat16, quantize=8)
    assert arrays["language_model.norm.weight"].dtype == mx.bfloat16
    assert arrays["language_model.embed_tokens.scales"].dtype == mx.bfloat16
    assert arrays["language_model.embed_tokens.weight"].dtype == mx.uint32


@pytest.mark.parametrize("bits", [4, 8])
def test_quantizes_the_decoder_and_no_front_end(google: Path, bits: int) -> None:
    seen: list[tuple[int, int]] = []
    arrays, quantization = load_folder(
        google, quantize=bits, progress=lambda done, total: seen.append((done, total))
    )
    quantized = {name.removesuffix(".scales") for name in arrays if name.endswith(".scales")}
    assert quantized == set(quantization)
    matrices = {
        name.removesuffix(".weight")
        for name, shape in expected_tensors(Config.from_folder(google)).items()
        if name.startswith("language_model.") and len(shape) == 2
    }
    assert quantized == matrices
    assert seen == [(done, len(matrices)) for done in range(len(matrices) + 1)]


@pytest.mark.parametrize("quantize", [None, 4, 8])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_memory_is_known_before_loading(
    google: Path, quantize: int | None, dtype: mx.Dtype
) -> None:
    checkpoint = open_folder(google)
    arrays, _ = load_weights(checkpoint, dtype=dtype, quantize=quantize)
    assert checkpoint.memory_bytes(dtype.size, quantize) == sum(a.nbytes for a in arrays.values())
    assert checkpoint.disk_bytes < (google / "model.safetensors").stat().st_size


def test_a_matrix_that_groups_do_not_divide_stays_as_it_is(tmp_path: Path) -> None:
    odd = replace(SMALL, intermediate_size=96)
    folder = write_checkpoint(tmp_path, odd, has_tokenizer=False)
    arrays, quantization = load_folder(folder, quantize=4)
    assert "language_model.layers.0.mlp.down_proj" not in quantization
    assert arrays["language_model.layers.0.mlp.down_proj.weight"].dtype == mx.float32
    assert "language_model.layers.0.mlp.up_proj" in quantization


def test_refuses_to_quantize_twice_or_to_other_bits(broken: Path) -> None:
    with pytest.raises(OptionError, match="quantize is 3 bits; allowed are 4 and 8"):
        load_folder(broken, quantize=3)
    arrays, _ = load_folder(broken, quantize=4)
    store(broken, arrays, quantization={"group_size": 64, "bits": 4})
    with pytest.raises(OptionError, match="already quantized to 4 bits; leave quantize out"):
        load_folder(broken, quantize=8)


def test_a_head_that_repeats_the_embedding_is_left_out(broken: Path) -> None:
    arrays = stored(broken)
    embedding = arrays["model.language_model.embed_tokens.weight"]
    store(broken, arrays | {"lm_head.weight": embedding})
    checkpoint = open_folder(broken)
    assert checkpoint.notes == ("lm_head.weight repeats the embedding and was left out",)
    assert "lm_head.weight" not in checkpoint.tensors
    changed = mx.array(embedding)
    changed[-1, -1] = 1e3
    store(broken, arrays | {"lm_head.weight": changed})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        open_folder(broken)


@pytest.mark.parametrize(
    ("front_end", "words"),
    [("vision", ("vision_embedder", "embed_vision")), ("audio", ("embed_audio",))],
)
def test_a_checkpoint_without_a_front_end_still_takes_text(
    broken: Path, front_end: str, words: tuple[str, ...]
) -> None:
    arrays = {n: a for n, a in stored(broken).items() if not any(word in n for word in words)}
    store(broken, arrays)
    checkpoint = open_folder(broken)
    assert getattr(checkpoint.config, f"{front_end}_config") is None
    assert f"no tensors of the {front_end} front end" in checkpoint.notes[0]
    loaded, _ = load_weights(checkpoint, dtype=mx.float32)
    assert len(loaded) == len(arrays)


def test_tensors_of_a_front_end_that_the_config_lacks_are_left_out(broken: Path) -> None:
    store(broken, stored(broken), vision_config=None)
    checkpoint = open_folder(broken)
    assert "config.json has no vision_config: 10 tensors" in checkpoint.notes[0]
    assert not any("vision" in name for name in checkpoint.tensors)


def test_an_incomplete_front_end_is_named(broken: Path) -> None:
    arrays = stored(broken)
    del arrays["model.vision_embedder.pos_embedding"]
    with pytest.raises(CheckpointError, match="1 missing of the vision front end: vision_embed"):
        open_folder(store(broken, arrays))


def remove_layers(folder: Path) -> None:
    arrays = stored(folder)
    store(folder, {n: a for n, a in arrays.items() if ".layers.3." not in n})


def add_tensors(folder: Path) -> None:
    store(folder, stored(folder) | {f"model.extra.{k}": mx.zeros(1) for k in range(12)})


def add_layers_to_config(folder: Path) -> None:
    types = ["sliding_attention"] * 6 + ["full_attention"]
    set_config(folder, "text_config", num_hidden_layers=7, layer_types=types)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def garble_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(content)


def garble_header_length(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def empty_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def change_dtype(folder: Path, dtype: str) -> None:
    rewrite_header(folder, lambda header: first(header).update(dtype=dtype))


def first(header: dict[str, Any]) -> dict[str, Any]:
    return header[next(name for name in header if name != "__metadata__")]


def rewrite_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def shift_offsets(folder: Path, by: int) -> None:
    """Move the second tensor, which then leaves a gap or overlaps the first."""

    def shift(header: dict[str, Any]) -> None:
        names = sorted(
            (name for name in header if name != "__metadata__"),
            key=lambda name: header[name]["data_offsets"],
        )
        header[names[1]]["data_offsets"] = [by + at for at in header[names[1]]["data_offsets"]]

    rewrite_header(folder, shift)


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4_0.gguf")


def transpose(folder: Path) -> None:
    arrays = stored(folder)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    store(folder, arrays | {name: mx.contiguous(arrays[name].T)})


def store_integers(folder: Path) -> None:
    arrays = stored(folder)
    name = "model.language_model.norm.weight"
    store(folder, arrays | {name: arrays[name].astype(mx.int32)})


def store_twice(folder: Path) -> None:
    arrays = stored(folder)
    norm = arrays["model.language_model.norm.weight"]
    store(folder, arrays | {"language_model.model.norm.weight": norm})


def store_scales(folder: Path) -> None:
    arrays = stored(folder)
    store(folder, arrays | {"model.language_model.embed_tokens.scales": mx.zeros((1024, 1))})


def quantize_in_other_groups(folder: Path) -> None:
    arrays, _ = load_folder(folder, quantize=4)
    store(folder, arrays, quantization={"group_size": 32, "bits": 4})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "layer missing": (remove_layers, r"14 missing: language_model\.layers\.3.*, and 4 more"),
    "unexpected": (add_tensors, r"12 unexpected: model\.extra\.0, .*, and 2 more"),
    "fewer layers": (add_layers_to_config, r"14 missing: .*layers\.6\..*5 of a wrong shape"),
    "wrong shape": (transpose, r"q_proj\.weight is \[64, 128\] instead of \[128, 64\]"),
    "integers": (store_integers, r"norm\.weight is I32 instead of BF16 or F16 or F32"),
    "two names": (store_twice, r"are the same parameter"),
    "scales without settings": (store_scales, r"config\.json has no quantization"),
    "other groups": (quantize_in_other_groups, r"84 of a wrong shape: .*scales is"),
    "truncated": (truncate, r"model\.safetensors is truncated: it has .* bytes of .*again"),
    "header garbled": (garble_header, r"model\.safetensors is no proper .*not JSON"),
    **{
        f"header with {what}": (
            lambda f, value=value: rewrite_header(f, lambda h: first(h).update(note=value)),
            r"not JSON",
        )
        for what, value in {"half a character": "\ud800", "a NaN": math.nan}.items()
    },
    "header length garbled": (garble_header_length, r"a header of 18,446,744,073,709,551,615"),
    "empty": (empty_file, r"model\.safetensors is no proper safetensors file .*file of 0\)"),
    "unknown dtype": (lambda f: change_dtype(f, "F7_X"), r"has dtype F7_X; known are BOOL"),
    "dtype no text": (lambda f: change_dtype(f, cast(str, [])), r"has dtype \[\]; known are BOOL"),
    "metadata": (
        lambda f: rewrite_header(f, lambda h: h.update(__metadata__={"format": 3})),
        r"its __metadata__ is not an object of strings",
    ),
    "other dtype": (lambda f: change_dtype(f, "F64"), r"needs [\d,]+ bytes and has"),
    "no shape": (lambda f: rewrite_header(f, lambda h: first(h).pop("shape")), r"proper shape"),
    "negative": (lambda f: rewrite_header(f, lambda h: first(h).update(shape=[-1])), r"proper sh"),
    "huge": (lambda f: rewrite_header(f, lambda h: first(h).update(shape=[2**60])), r"proper sh"),
    "gap": (lambda f: shift_offsets(f, 4), r"leaves a gap before it"),
    "overlap": (lambda f: shift_offsets(f, -4), r"overlaps the one before it"),
    "no object": (lambda f: rewrite_header(f, lambda h: h.update(x=1)), r"x is no object"),
    "pickle": (only_pickle, r"pickled weights .*are never read"),
    "GGUF": (only_gguf, r"only GGUF, which is not supported"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"check the path"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(broken: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    break_it(broken)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_folder(broken)
    assert str(broken) in str(caught.value)
    assert len(str(caught.value)) < 2500


def test_trailing_bytes_are_no_part_of_a_file(broken: Path) -> None:
    with (broken / "model.safetensors").open("ab") as file:
        file.write(b"0" * 10)
    with pytest.raises(CheckpointError, match="10 bytes follow the last tensor"):
        open_folder(broken)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", SMALL, has_tokenizer=False, num_shards=3)


def test_missing_shards_are_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 files .* missing: model-00002-of-00003\."):
        open_folder(sharded)
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"2 of 3 shards are here; missing: model-00002-of-"):
        open_folder(sharded)


def test_shards_need_no_index(sharded: Path, google: Path) -> None:
    (sharded / INDEX).unlink()
    assert_same(load_folder(sharded)[0], load_folder(google)[0])


def rewrite_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def swap_files(weight_map: dict[str, str]) -> None:
    for name in list(weight_map)[:3]:
        weight_map[name] = "model-00003-of-00003.safetensors"


INDEX_DAMAGES: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "other file": (swap_files, r"disagree on 3 tensors: model\.language_model\.embed_tokens"),
    "unknown tensor": (lambda m: m.update(x="model-00001-of-00003.safetensors"), r"on 1 .*: x"),
    "left out": (lambda m: m.pop("model.language_model.norm.weight"), r"on 1 tensors: model\.lang"),
    "path": (lambda m: m.update(x="../model.safetensors"), r"x is in '\.\./model\.safetensors'"),
    "absolute": (lambda m: m.update(x="/etc/x.safetensors"), r"in the same folder"),
    "pickle": (lambda m: m.update(x="model.bin"), r"allowed is the name of a \.safetensors file"),
    "long": (lambda m: m.update(x="a" * 5000 + ".safetensors"), r"x is in 'aaa.*in the same"),
    "no name": (lambda m: m.update(x=cast(str, None)), r"x is in 'None'"),
    "nothing": (lambda m: m.clear(), r"has no weight_map"),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_an_index_that_does_not_fit_is_named(sharded: Path, damage: str) -> None:
    change, message = INDEX_DAMAGES[damage]
    rewrite_index(sharded, change)
    with pytest.raises(CheckpointError, match=message):
        open_folder(sharded)


def test_an_index_that_is_not_json_is_named(sharded: Path) -> None:
    (sharded / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is not JSON"):
        open_folder(sharded)


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded / "model-a.safetensors")
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"is in model-00001-of-00003\.\S+ and in model-a\."):
        open_folder(sharded)


def test_left_over_files_are_not_guessed_at(sharded: Path, google: Path) -> None:
    shutil.copy(google / "model.safetensors", sharded)
    with pytest.raises(CheckpointError, match="remove whichever is left over"):
        open_folder(sharded)


def test_strange_names_do_not_reach_the_terminal(broken: Path) -> None:
    store(broken, stored(broken) | {"\x1b[31m": mx.zeros(1), "y" * 10_000: mx.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        open_folder(broken)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_headers_are_read_without_tensors(google: Path) -> None:
    header = read_header(google / "model.safetensors")
    tensor = header["model.language_model.norm.weight"]
    content = np.fromfile(tensor.file, np.float32, 64, offset=tensor.offset)
    assert np.array_equal(content, np.array(stored(google)[tensor.name]))
