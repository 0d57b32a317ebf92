"""Targets that read a checkpoint: headers, configs, and the tokenizer's file."""

import json
import math
import struct
from collections.abc import Sequence
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from random import Random
from typing import Any

from fuzz.case import Files, Target, write_files
from fuzz.mutation import mutate_bytes, mutate_json
from mlx_gemma4.config import Config, GenerationConfig
from mlx_gemma4.processing.chat_template import ChatTemplate
from mlx_gemma4.processing.settings import ProcessorSettings
from mlx_gemma4.processing.tokenizer import Tokenizer
from mlx_gemma4.weights import expected_tensors, load_weights, open_checkpoint

MIB = 1 << 20
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_CONFIG_WORDS = ("full_attention", "sliding_attention", "proportional", "affine", "mxfp4", "nvfp4")
_CONFIG_WORDS += ("int", "group", "pack-quantized", "bfloat16", 32, 128, 280, 640, 70.0, 3, 1024)
_HEADER_WORDS = ("F32", "BF16", "F64", "F8_E4M3", "BOOL", "U32", "I64", "__metadata__", [0, 0])


def demo_file(name: str) -> bytes:
    """Return a file of the bundled checkpoint."""
    return package_files("mlx_gemma4.demo").joinpath(name).read_bytes()


@cache
def read_configs() -> tuple[Files, ...]:
    """Return the bundled checkpoint's configs, as they are and in the forms of others."""
    names = ("config.json", "generation_config.json", "processor_config.json")
    demo = {name: demo_file(name) for name in (*names, "tokenizer_config.json")}
    demo["tokenizer.json"] = demo_file("tokenizer.json")
    config = json.loads(demo["config.json"])
    text = config["text_config"]
    transformers = {
        **text,
        "per_layer_config": {"05": {"head_dim": 512, "num_key_value_heads": 1}},
    }
    overrides: dict[str, Any] = {"language_model.model.embed_tokens": {"bits": 8, "group_size": 64}}
    overrides["language_model.model.norm"] = False
    mlx = {"group_size": 64, "bits": 4, "mode": "affine", **overrides}
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32}
    packed = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }
    forms = (
        config,
        config | {"text_config": transformers},
        config | {"quantization": mlx, "vision_config": None},
        config | {"quantization_config": packed, "audio_config": None},
    )
    return tuple(demo | {"config.json": json.dumps(form).encode()} for form in forms)


def mutate_one_json(rng: Random, real: Sequence[Files], words: Sequence[Any]) -> Files:
    """Return one of the real inputs with one of its JSON files changed."""
    files = rng.choice(real)
    name = rng.choice([name for name in files if name != "tokenizer.json"])
    return {**files, name: mutate_json(rng, json.loads(files[name]), words)}


def mutate_config(rng: Random, real: Sequence[Files]) -> Files:
    """Change one of the configs."""
    return mutate_one_json(rng, real, _CONFIG_WORDS)


def run_config(files: Files, folder: Path) -> None:
    """Read all configs, and ask the config what it asks for."""
    write_files(files, folder)
    config = Config.from_folder(folder)
    GenerationConfig.from_folder(folder, config)
    ProcessorSettings.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    ChatTemplate.from_folder(folder, tokenizer.special_tokens)
    expected_tensors(config)


@cache
def read_checkpoints() -> tuple[Files, ...]:
    """Return tiny checkpoints of zeros: in one file, in shards, quantized, and packed."""
    config = json.loads(demo_file("config.json"))
    small = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    small |= {"global_head_dim": 64}
    config["text_config"] |= small
    plain = config | {"vision_config": None, "audio_config": None}
    seeing = config | {"vision_config": {"mm_embed_dim": 2, "mm_posemb_size": 4}}
    quantized = plain | {"quantization": {"group_size": 64, "bits": 4}}
    packed = plain | {"quantization_config": json.loads(read_configs()[3]["config.json"])}
    packed["quantization_config"] = packed["quantization_config"]["quantization_config"]
    return (
        _checkpoint(plain, _tensors(plain)),
        _checkpoint(seeing, _tensors(seeing)),
        _checkpoint(plain, _tensors(plain), in_shards=True),
        _checkpoint(quantized, _quantized(_tensors(plain))),
        _checkpoint(packed, _packed(_tensors(plain))),
    )


_Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def _tensors(config: dict[str, Any]) -> _Tensors:
    shapes = expected_tensors(Config.from_dict(config))
    return {
        f"model.{name}": ("BF16", shape, bytes(2 * math.prod(shape)))
        for name, shape in shapes.items()
    }


def _quantized(tensors: _Tensors) -> _Tensors:
    made = dict(tensors)
    for name, (_, shape, _) in tensors.items():
        if len(shape) == 2:
            path, (rows, columns) = name.removesuffix(".weight"), shape
            made[name] = ("U32", (rows, columns // 8), bytes(rows * columns // 2))
            for part in ("scales", "biases"):
                groups = (rows, columns // 64)
                made[f"{path}.{part}"] = ("BF16", groups, bytes(2 * math.prod(groups)))
    return made


def _packed(tensors: _Tensors) -> _Tensors:
    made: _Tensors = {}
    for name, (dtype, shape, content) in tensors.items():
        if len(shape) != 2 or "embed" in name:
            made[name] = (dtype, shape, content)
            continue
        rows, columns = shape
        groups = (rows, columns // 32)
        made[f"{name}_packed"] = ("I32", (rows, columns // 8), bytes(rows * columns // 2))
        made[f"{name}_scale"] = ("BF16", groups, bytes(2 * math.prod(groups)))
        made[f"{name}_shape"] = ("I64", (2,), struct.pack("<2q", rows, columns))
    return made


def _checkpoint(config: dict[str, Any], tensors: _Tensors, *, in_shards: bool = False) -> Files:
    files = {"config.json": json.dumps(config).encode()}
    if not in_shards:
        return files | {_WEIGHTS: _safetensors(tensors)}
    weight_map = {name: _SHARDS[index % 2] for index, name in enumerate(tensors)}
    for shard in _SHARDS:
        own = {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}
        files[shard] = _safetensors(own)
    return files | {_INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def _safetensors(tensors: _Tensors) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, shape, content) in tensors.items():
        offsets = [end, end + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        end += len(content)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(c for _, _, c in tensors.values())


def mutate_header(rng: Random, real: Sequence[Files]) -> Files:
    """Change a header, the index, or the config of a checkpoint; now and then any byte."""
    files = rng.choice(real)
    name = rng.choice([name for name in files if name != "config.json"] * 3 + ["config.json"])
    content = files[name]
    if name.endswith(".json"):
        words = (*_SHARDS, _WEIGHTS, *_HEADER_WORDS)
        return {**files, name: mutate_json(rng, json.loads(content), words)}
    (length,) = struct.unpack_from("<Q", content)
    body = content[8 + length :]
    if rng.random() < 0.2:
        head = mutate_bytes(rng, content[: 8 + length])
        return {**files, name: head + body}
    header = json.loads(content[8 : 8 + length])
    text = mutate_json(rng, _drawn(rng, header), _HEADER_WORDS)
    return {**files, name: struct.pack("<Q", len(text)) + text + body}


def _drawn(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Return a header in which a tensor may be another that fills the same bytes."""
    if rng.random() < 0.5:
        return header
    name = rng.choice(list(header))
    entry = dict(header[name])
    if rng.random() < 0.5:
        entry["shape"] = [*entry.get("shape", []), *[1] * rng.choice((1, 2, 6))]
    else:
        entry["dtype"] = rng.choice(("F16", "I16", "U16", "F32", "F8_E5M2"))
    return header | {name: entry}


def run_weights(files: Files, folder: Path) -> None:
    """Open a checkpoint, and read every tensor of one that is taken."""
    import mlx.core as mx

    write_files(files, folder)
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    checkpoint.memory_bytes(4)
    arrays, _ = load_weights(checkpoint, dtype=mx.float32)
    mx.eval(arrays)
    if not checkpoint.quantization:
        load_weights(checkpoint, dtype=mx.float32, quantize=4)


@cache
def read_tokenizers() -> tuple[Files, ...]:
    """Return the bundled checkpoint's tokenizer."""
    return ({name: demo_file(name) for name in ("tokenizer.json", "tokenizer_config.json")},)


def mutate_tokenizer(rng: Random, real: Sequence[Files]) -> Files:
    """Change tokenizer.json: its rules more often than its vocabulary."""
    files = rng.choice(real)
    document = json.loads(files["tokenizer.json"])
    words = ("BPE", "Unigram", "WordLevel", "Split", "Replace", "Sequence", "ByteFallback", "Regex")
    if rng.random() < 0.3:
        return {**files, "tokenizer.json": mutate_json(rng, document, words)}
    vocabulary = document["model"].pop("vocab"), document["model"].pop("merges")
    text = mutate_json(rng, document, words)
    try:
        changed = json.loads(text)
        changed["model"]["vocab"], changed["model"]["merges"] = vocabulary
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return {**files, "tokenizer.json": text}
    return {**files, "tokenizer.json": json.dumps(changed).encode()}


def run_tokenizer(files: Files, folder: Path) -> None:
    """Read a tokenizer, and use it as the processor does."""
    tokenizer = Tokenizer.from_folder(write_files(files, folder))
    ids = tokenizer.encode("A <|image|> and 2 x 3?\n\té€\U0001f600<turn|>", add_bos=True)
    tokenizer.decode(ids)
    tokenizer.decode(ids, skip_special_tokens=False)
    tokenizer.decode([0, 1, tokenizer.vocab_size - 1])
    _ = tokenizer.special_ids, tokenizer.byte_ids, tokenizer.id_to_token(7)


TARGETS = (
    Target("weights", read_checkpoints, mutate_header, run_weights, 256 * MIB),
    Target("config", read_configs, mutate_config, run_config, 256 * MIB),
    Target("tokenizer", read_tokenizers, mutate_tokenizer, run_tokenizer, 256 * MIB),
)
