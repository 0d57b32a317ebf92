"""Random checkpoints in Google's names and config form, for tests and for measuring.

Nothing here answers anything: layer scalars are 0.6 to 1.1 as in the real checkpoint's range, norms
vary, and the final norm is large enough for the softcap to matter.  Tensors are drawn and written
one at a time, so that a checkpoint larger than memory can be made; NumPy alone does it.

    python benchmarks/random_checkpoint.py tiny build/tiny
    python benchmarks/random_checkpoint.py mid build/mid --dtype bfloat16 --shards 2
"""

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

# Columns and rows of a picture's patch, and samples of a frame of sound: fixed by the architecture.
PATCH_DIM = 48 * 48 * 3
FRAME_DIM = 640
# Keys of config.json for special tokens.
PLACEHOLDERS = {
    "image_token_id": "<|image|>",
    "audio_token_id": "<|audio|>",
    "video_token_id": "<|video|>",
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "boa_token_id": "<|audio>",
    "eoa_token_index": "<audio|>",
}
DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}


@dataclass(frozen=True)
class Size:
    """The dimensions of a checkpoint, under the names of its config.

    Layers repeat five sliding ones and a global one; global layers have one key/value head.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    global_head_dim: int
    sliding_window: int
    vocab_size: int
    num_soft_tokens: int = 280
    num_frames: int = 32

    @property
    def layer_types(self) -> list[str]:
        """`config.text_config.layer_types`."""
        return [
            "full_attention" if index % 6 == 5 else "sliding_attention"
            for index in range(self.num_hidden_layers)
        ]


SIZES = {
    "tiny": Size(256, 512, 12, 4, 2, 64, 128, 128, 4096),  # 11 M parameters
    "mid": Size(1024, 4096, 12, 8, 4, 128, 256, 512, 32768),  # 236 M
    "big": Size(2560, 10240, 12, 8, 4, 256, 512, 1024, 131072),  # 1.5 G
    # The 12B's heads, window, and head dimensions; a quarter of its width and of its layers.  Two
    # of them are global: of the last layer, chunks before the end need keys and values alone.
    "heads": Size(1024, 4096, 12, 16, 8, 256, 512, 1024, 4096),
    # The 12B's 48 layers, narrow: what each of them leaves behind adds up.
    "deep": Size(256, 512, 48, 4, 4, 128, 128, 256, 4096),
    "real": Size(3840, 15360, 48, 16, 8, 256, 512, 1024, 262144),  # 12 G, the shapes of the 12B
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be drawn: `center` * uniform(0.5, 1.5) for norms, else normal(0, `scale`)."""

    name: str
    shape: tuple[int, ...]
    scale: float = 0.0
    center: float = 0.0

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def draw(self, seed: int, dtype: str) -> np.ndarray:
        """Return its values; bfloat16 as uint16, since NumPy has no such type."""
        # The name is part of the seed: a tensor is the same whichever others are drawn.
        rng = np.random.default_rng([seed, *self.name.encode()])
        if self.name.endswith("layer_scalar"):
            values = rng.uniform(0.6, 1.1, self.shape).astype(np.float32)
        elif self.center:
            values = (self.center * rng.uniform(0.5, 1.5, self.shape)).astype(np.float32)
        else:
            values = rng.standard_normal(self.shape, np.float32) * np.float32(self.scale)
        return values if dtype == "float32" else round_to_bfloat16(values)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 values, rounded to nearest even; uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def list_tensors(size: Size) -> Iterator[Tensor]:
    """Yield every tensor of a checkpoint under Google's names on disk."""
    hidden, heads = size.hidden_size, size.num_attention_heads

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return Tensor(f"{name}.weight", (rows, columns), scale=columns**-0.5)

    def norm(name: str, dims: int, center: float = 1.0) -> Tensor:
        return Tensor(f"{name}.weight", (dims,), center=center)

    language = "model.language_model"
    embedding_shape = (size.vocab_size, hidden)
    yield Tensor(f"{language}.embed_tokens.weight", embedding_shape, scale=hidden**-0.5)
    for index, layer_type in enumerate(size.layer_types):
        layer, is_sliding = f"{language}.layers.{index}", layer_type == "sliding_attention"
        head_dim = size.head_dim if is_sliding else size.global_head_dim
        kv_heads = size.num_key_value_heads if is_sliding else 1
        yield norm(f"{layer}.input_layernorm", hidden)
        yield norm(f"{layer}.post_attention_layernorm", hidden)
        yield norm(f"{layer}.pre_feedforward_layernorm", hidden)
        yield norm(f"{layer}.post_feedforward_layernorm", hidden)
        yield Tensor(f"{layer}.layer_scalar", (1,))
        yield matrix(f"{layer}.self_attn.q_proj", heads * head_dim, hidden)
        yield matrix(f"{layer}.self_attn.k_proj", kv_heads * head_dim, hidden)
        if is_sliding:
            yield matrix(f"{layer}.self_attn.v_proj", kv_heads * head_dim, hidden)
        yield matrix(f"{layer}.self_attn.o_proj", hidden, heads * head_dim)
        # Attention is not scaled: this keeps the scores of a random network at a few units.
        yield norm(f"{layer}.self_attn.q_norm", head_dim, 2 * head_dim**-0.5)
        yield norm(f"{layer}.self_attn.k_norm", head_dim)
        yield matrix(f"{layer}.mlp.gate_proj", size.intermediate_size, hidden)
        yield matrix(f"{layer}.mlp.up_proj", size.intermediate_size, hidden)
        yield matrix(f"{layer}.mlp.down_proj", hidden, size.intermediate_size)
    yield norm(f"{language}.norm", hidden, 8.0)
    embedder = "model.vision_embedder"
    for name, dims in (("patch_ln1", PATCH_DIM), ("patch_ln2", hidden), ("pos_norm", hidden)):
        yield norm(f"{embedder}.{name}", dims)
        yield Tensor(f"{embedder}.{name}.bias", (dims,), scale=0.1)
    yield matrix(f"{embedder}.patch_dense", hidden, PATCH_DIM)
    yield Tensor(f"{embedder}.patch_dense.bias", (hidden,), scale=0.1)
    yield Tensor(f"{embedder}.pos_embedding", (1120, 2, hidden), scale=0.3)
    yield matrix("model.embed_vision.embedding_projection", hidden, hidden)
    yield matrix("model.embed_audio.embedding_projection", hidden, FRAME_DIM)


def build_config(
    size: Size, dtype: str, token_ids: Mapping[str, int | list[int]]
) -> dict[str, Any]:
    """Return config.json in Google's form; `token_ids` are those of PLACEHOLDERS and of eos."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "global_head_dim", "sliding_window", "vocab_size")
    rope = {
        "full_attention": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000000.0,
            "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    text = {
        "model_type": "gemma4_unified_text",
        "attention_bias": False,
        "attention_k_eq_v": True,
        "bos_token_id": 2,
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "layer_types": size.layer_types,
        "max_position_embeddings": 262144,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": "vision",
        "vocab_size_per_layer_input": size.vocab_size,
    } | {name: getattr(size, name) for name in names}
    vision = {
        "model_type": "gemma4_unified_vision",
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "model_patch_size": 48,
        "mm_embed_dim": size.hidden_size,
        "mm_posemb_size": 1120,
        "num_soft_tokens": size.num_soft_tokens,
        "output_proj_dims": size.hidden_size,
        "rms_norm_eps": 1e-6,
    }
    audio = {
        "model_type": "gemma4_unified_audio",
        "audio_embed_dim": FRAME_DIM,
        "audio_samples_per_token": FRAME_DIM,
        "hidden_size": FRAME_DIM,
        "output_proj_dims": FRAME_DIM,
        "rms_norm_eps": 1e-6,
    }
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "dtype": dtype,
        "tie_word_embeddings": True,
        **token_ids,
        # mlx-lm looks for it here alone.
        "vocab_size": size.vocab_size,
        "text_config": text,
        "vision_config": vision,
        "audio_config": audio,
    }


def build_processor_config(size: Size) -> dict[str, Any]:
    """Return processor_config.json in Google's form."""
    picture = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": size.num_soft_tokens,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    video = picture | {
        "do_normalize": True,
        "do_sample_frames": True,
        "max_soft_tokens": 70,
        "num_frames": size.num_frames,
        "return_metadata": False,
        "video_processor_type": "Gemma4UnifiedVideoProcessor",
    }
    sound = {
        "audio_samples_per_token": FRAME_DIM,
        "feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor",
        "feature_size": FRAME_DIM,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }
    return {
        "processor_class": "Gemma4UnifiedProcessor",
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "image_seq_length": size.num_soft_tokens,
        "feature_extractor": sound,
        "image_processor": picture | {"image_processor_type": "Gemma4UnifiedImageProcessor"},
        "video_processor": video,
    }


def build_tokenizer(source: Path, vocab_size: int) -> dict[str, Any]:
    """Return a folder's tokenizer.json, its vocabulary filled up so that any id has a token."""
    form = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = form["model"]["vocab"]
    used = set(vocab.values()) | {token["id"] for token in form["added_tokens"]}
    if max(used) >= vocab_size:
        sys.exit(f"{source}/tokenizer.json has ids up to {max(used)}; vocab_size is {vocab_size}")
    unused = (index for index in range(vocab_size) if index not in used)
    vocab.update({f"<unused{count}>": index for count, index in enumerate(unused)})
    return form


def find_token_ids(form: dict[str, Any] | None, vocab_size: int) -> dict[str, int]:
    """Return the ids of Gemma's special tokens; without a tokenizer, ids of the same order."""
    if form is not None:
        return {token["content"]: token["id"] for token in form["added_tokens"]}
    low = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<|tool_response>": 50, "<turn|>": 106}
    high = sorted(PLACEHOLDERS.values())
    return low | {token: vocab_size - len(high) + k for k, token in enumerate(high)}


def write_safetensors(path: Path, tensors: dict[str, Tensor], seed: int, dtype: str) -> None:
    """Draw tensors one at a time into a file, under the names that are their keys."""
    code, itemsize = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + itemsize * tensor.count
        shape = list(tensor.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.draw(seed, dtype).data)


def split_evenly(tensors: list[Tensor], num_shards: int) -> list[list[Tensor]]:
    """Return runs of tensors of about the same number of bytes, none of them empty."""
    total = sum(tensor.count for tensor in tensors)
    shards: list[list[Tensor]] = [[] for _ in range(num_shards)]
    done = 0
    for tensor in tensors:
        shards[min(num_shards - 1, done * num_shards // total)].append(tensor)
        done += tensor.count
    return [shard for shard in shards if shard]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a document as Google's files are written: two spaces, UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(
    folder: Path,
    size: Size | str = "tiny",
    *,
    dtype: str = "float32",
    num_shards: int = 1,
    seed: int = 0,
    rename: Callable[[str], str] = str,
    has_tokenizer: bool = True,
    tokenizer_from: Path | None = None,
) -> Path:
    """Write a random checkpoint and return its folder, which is made if need be.

    Args:
        folder: Where to; files there are overwritten.
        size: Dimensions, or a key of SIZES.
        dtype: "float32" or "bfloat16".
        num_shards: One makes `model.safetensors`, more make shards and an index.
        seed: Of the tensors' values.
        rename: From Google's tensor names to others; values do not depend on it.
        has_tokenizer: Whether tokenizer and chat template are written too.
        tokenizer_from: Folder of tokenizer and template; the demo checkpoint's if None.
    """
    size = SIZES[size] if isinstance(size, str) else size
    folder.mkdir(parents=True, exist_ok=True)
    form = None
    if has_tokenizer:
        source = tokenizer_from or Path(str(files("mlx_gemma4.demo")))
        form = build_tokenizer(source, size.vocab_size)
        write_json(folder / "tokenizer.json", form)
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            (folder / name).write_bytes((source / name).read_bytes())
    ids = find_token_ids(form, size.vocab_size)
    stops = [ids["<eos>"], ids["<turn|>"]]
    named_ids = {key: ids[content] for key, content in PLACEHOLDERS.items()}
    config = build_config(size, dtype, named_ids | {"eos_token_id": stops})
    write_json(folder / "config.json", config)
    write_json(folder / "processor_config.json", build_processor_config(size))
    generation = {
        "bos_token_id": ids["<bos>"],
        "do_sample": True,
        "eos_token_id": [*stops, ids["<|tool_response>"]],
        "pad_token_id": ids["<pad>"],
        "suppress_tokens": [ids["<audio|>"], ids["<image|>"]],
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
    }
    write_json(folder / "generation_config.json", generation)
    write_weights(folder, split_evenly(list(list_tensors(size)), num_shards), seed, dtype, rename)
    return folder


def write_weights(
    folder: Path,
    shards: list[list[Tensor]],
    seed: int,
    dtype: str,
    rename: Callable[[str], str],
) -> None:
    """Write one `model.safetensors`, or several shards and their index."""
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        name = name if len(shards) > 1 else "model.safetensors"
        tensors = {rename(tensor.name): tensor for tensor in shard}
        write_safetensors(folder / name, tensors, seed, dtype)
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = DTYPES[dtype][1] * sum(tensor.count for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random checkpoint.")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer-from", type=Path, help="folder; default: the demo checkpoint")
    options = parser.parse_args()
    write_checkpoint(
        options.folder,
        options.size,
        dtype=options.dtype,
        num_shards=options.shards,
        seed=options.seed,
        tokenizer_from=options.tokenizer_from,
    )
    count = sum(tensor.count for tensor in list_tensors(SIZES[options.size]))
    print(f"{options.folder}: {options.size}, {count / 1e6:.1f} M parameters, {options.dtype}")


if __name__ == "__main__":
    main()
