"""Checkpoints on disk: found, checked against config.json, and loaded under one set of names.

The headers of all files are checked before any tensor is read, so that a damaged or mismatched
checkpoint is named in a second and not halfway through 24 GB.  Canonical names, whatever a file
calls them, are the paths in `mlx_gemma4.model`: Google's without the leading "model.".
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_gemma4.config import Config, QuantizationSettings
from mlx_gemma4.errors import CheckpointError, OptionError

# Quantization while loading: groups of 64, as MLX's converters write by default.
QUANTIZE_GROUP_SIZE = 64
QUANTIZE_BITS = (4, 8)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_MAX_HEADER_BYTES = 32 * 1024 * 1024  # 677 tensors take 90 kB
_MAX_INDEX_BYTES = 32 * 1024 * 1024
_MAX_LISTED = 10
_COMPARED_BYTES = 8 * 1024 * 1024

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_FLOATS: tuple[str, ...] = ("BF16", "F16", "F32")

# Names that transformers 5 writes for what Google's files call vision_embedder.*.
_MOVED_TO_VISION_EMBEDDER = re.compile(
    r"embed_vision\.(?=(?:patch_ln1|patch_dense|patch_ln2|pos_norm|pos_embedding)(?:\.|$))"
)
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")

# Front end -> its key in Config, the prefixes of its tensors, what it is for.
_FRONT_ENDS = {
    "vision": ("vision_config", ("vision_embedder.", "embed_vision."), "pictures and videos"),
    "audio": ("audio_config", ("embed_audio.",), "sounds"),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it.

    Attributes:
        file: Where it lies.
        name: What the file calls it.
        dtype: In the words of safetensors, such as "BF16".
        offset: Of its first byte in the file.
        nbytes: In the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def is_float(self) -> bool:
        """Whether it is cast to the dtype of activations."""
        return self.dtype in _FLOATS


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked against its config.

    Attributes:
        folder: Where it lies.
        config: As given, but without a front end that has no tensors.
        tensors: By canonical name; exactly the model's parameters.
        quantization: Of each module that is stored quantized, by canonical path.
        notes: What was left out: one line each.
    """

    folder: Path
    config: Config
    tensors: Mapping[str, StoredTensor]
    quantization: Mapping[str, QuantizationSettings]
    notes: tuple[str, ...] = ()

    @property
    def disk_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def memory_bytes(self, item_bytes: int, quantize: int | None = None) -> int:
        """Bytes of all parameters once loaded.

        Args:
            item_bytes: Of one activation: 2 for bfloat16, 4 for float32.
            quantize: Bits, as `load_weights` would use them.
        """
        total = 0
        for name, tensor in self.tensors.items():
            count = math.prod(tensor.shape)
            if quantize and _is_quantizable(name, tensor.shape):
                total += count * quantize // 8 + 2 * item_bytes * count // QUANTIZE_GROUP_SIZE
            else:
                total += count * item_bytes if tensor.is_float else tensor.nbytes
        return total


def expected_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by canonical name, for a checkpoint without quantization.

    Source: transformers modeling_gemma4_unified.py; linears are [out, in].
    """
    shapes = dict(_expected_decoder(config))
    hidden_size = config.text_config.hidden_size
    if (vision := config.vision_config) is not None:
        for norm, dims in (
            ("patch_ln1", vision.patch_dim),
            ("patch_ln2", vision.mm_embed_dim),
            ("pos_norm", vision.mm_embed_dim),
        ):
            shapes[f"vision_embedder.{norm}.weight"] = (dims,)
            shapes[f"vision_embedder.{norm}.bias"] = (dims,)
        shapes["vision_embedder.patch_dense.weight"] = (vision.mm_embed_dim, vision.patch_dim)
        shapes["vision_embedder.patch_dense.bias"] = (vision.mm_embed_dim,)
        shapes["vision_embedder.pos_embedding"] = (vision.mm_posemb_size, 2, vision.mm_embed_dim)
        shapes["embed_vision.embedding_projection.weight"] = (hidden_size, vision.output_proj_dims)
    if (audio := config.audio_config) is not None:
        shapes["embed_audio.embedding_projection.weight"] = (hidden_size, audio.output_proj_dims)
    return shapes


def _expected_decoder(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the decoder's parameters."""
    text = config.text_config
    hidden_size = text.hidden_size
    yield "language_model.embed_tokens.weight", (text.vocab_size, hidden_size)
    for index in range(text.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        head_dim = text.head_dim_of(index)
        query_dims = text.num_attention_heads * head_dim
        key_value_dims = text.num_key_value_heads_of(index) * head_dim
        yield f"{layer}.layer_scalar", (1,)
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            yield f"{layer}.{norm}.weight", (hidden_size,)
        yield f"{layer}.self_attn.q_proj.weight", (query_dims, hidden_size)
        yield f"{layer}.self_attn.k_proj.weight", (key_value_dims, hidden_size)
        if text.is_sliding(index):  # global layers take their values from k_proj
            yield f"{layer}.self_attn.v_proj.weight", (key_value_dims, hidden_size)
        yield f"{layer}.self_attn.o_proj.weight", (hidden_size, query_dims)
        yield f"{layer}.self_attn.q_norm.weight", (head_dim,)
        yield f"{layer}.self_attn.k_norm.weight", (head_dim,)
        yield f"{layer}.mlp.gate_proj.weight", (text.intermediate_size, hidden_size)
        yield f"{layer}.mlp.up_proj.weight", (text.intermediate_size, hidden_size)
        yield f"{layer}.mlp.down_proj.weight", (hidden_size, text.intermediate_size)
    yield "language_model.norm.weight", (hidden_size,)


def canonical_name(name: str) -> str:
    """Return the path in the model of a tensor, or of a module, as any of the layouts calls it.

    Google's and ours are "model.language_model.layers...", those of mlx-lm and mlx-vlm
    "language_model.model.layers...", and transformers 5 has moved "vision_embedder.*".

    Source: transformers conversion_mapping.py, "gemma4_unified".
    """
    name = name.removeprefix("model.")
    if name.startswith("language_model.model."):
        name = "language_model." + name.removeprefix("language_model.model.")
    if name.startswith("language_model.lm_head."):
        name = name.removeprefix("language_model.")
    name = name.replace("embed_vision.multimodal_embedder.", "embed_vision.")
    return _MOVED_TO_VISION_EMBEDDER.sub("vision_embedder.", name)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by the names in it; no tensor is read.

    Raises:
        CheckpointError: The file is truncated or corrupt, or has an unknown dtype.

    Source: safetensors' format description: u64 length, JSON, then the bytes of all tensors
        without gaps.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise _corrupt(file, f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror}; check its permissions"
        ) from None
    except (ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
        raise _corrupt(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    tensors = {
        name: _read_entry(file, name, entry, 8 + length)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_extents(file, tensors, 8 + length, size)
    return tensors


def _read_entry(file: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """Return one entry of a header, whose offsets count from `start`."""
    shown = _shown(name)
    if not isinstance(entry, dict):
        raise _corrupt(file, f"tensor {shown} is no object")
    dtype = entry.get("dtype")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(
            f"{file}: tensor {shown} has dtype {str(dtype)[:20]}; known are "
            f"{', '.join(_ITEM_BYTES)}; download the file again, or take another conversion"
        )
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _corrupt(file, f"tensor {shown} has no proper shape and offsets")
    nbytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise _corrupt(
            file, f"tensor {shown} needs {nbytes:,} bytes and has {offsets[1] - offsets[0]:,}"
        )
    return StoredTensor(file, name, dtype, shape, start + offsets[0], nbytes)


def _sizes(values: Any) -> tuple[int, ...] | None:
    """Return a short list of whole numbers that a file can have, or None if it is no such list."""
    if not isinstance(values, list) or len(values) > 8:
        return None
    proper = all(type(value) is int and 0 <= value < 2**48 for value in values)
    return tuple(values) if proper else None


def _check_extents(file: Path, tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Check that the tensors fill the file from `start` to its end, side by side."""
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a gap before"
            raise _corrupt(file, f"tensor {_shown(tensor.name)} {what} it")
        end += tensor.nbytes
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: it has {size:,} bytes of {end:,}; download it again"
        )
    if end < size:
        raise _corrupt(file, f"{size - end:,} bytes follow the last tensor")


def _corrupt(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is no proper safetensors file ({what}); download it again")


def _shown(name: str) -> str:
    """Return a tensor's name as messages print it, whatever characters a file has there."""
    name = name if len(name) <= 100 else name[:97] + "..."
    return name if name.isprintable() else ascii(name)


def _listed(names: Sequence[str]) -> str:
    """Return at most ten names, and the count of the rest."""
    rest = len(names) - _MAX_LISTED
    listed = ", ".join(_shown(name) for name in names[:_MAX_LISTED])
    return f"{listed}, and {rest} more" if rest > 0 else listed


def find_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the safetensors files of a checkpoint, and which of them has each tensor.

    Returns:
        Files in order, and tensor name -> file name from the index; None without an index.

    Raises:
        CheckpointError: There is none, or a shard is missing, or the index is broken.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if index.is_file():
        weight_map = _read_index(index)
        names = sorted(set(weight_map.values()))
        if single.is_file() and SINGLE_FILE not in names:
            raise CheckpointError(
                f"{folder} has both {SINGLE_FILE} and an index of other files; remove whichever "
                "is left over from an earlier conversion"
            )
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(names)} files in {INDEX_FILE} are missing: "
                f"{_listed(missing)}; download them again"
            )
        return [folder / name for name in names], weight_map
    if single.is_file():
        return [single], None
    files = sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no {SINGLE_FILE}{_other_formats(folder)}")
    _check_shards(folder, files)
    return files, None


def _read_index(index: Path) -> dict[str, str]:
    """Return tensor name -> file name; a file name is never a path out of the folder."""
    try:
        too_large = index.stat().st_size > _MAX_INDEX_BYTES
        content = None if too_large else json.loads(index.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"cannot read {index}: {error.strerror}; check its permissions"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{index} is not JSON; download it again") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    for name, file in weight_map.items():
        proper = isinstance(file, str) and file.endswith(".safetensors")
        if not proper or Path(file).name != file or "\\" in file or not file.isprintable():
            raise CheckpointError(
                f"{index}: {_shown(name)} is in {str(file)[:80]!r}; allowed is the name of a "
                ".safetensors file in the same folder"
            )
    return weight_map


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    """Check by their names that no shard is missing where there is no index."""
    shards = [match for file in files if (match := _SHARD.fullmatch(file.name))]
    for digits, total in sorted({(len(shard[1]), shard[2]) for shard in shards}):
        have = {int(shard[1]) for shard in shards if shard[2] == total}
        # A count far beyond the files that are here is listed no further than messages go.
        wanted = range(1, min(int(total), len(have) + _MAX_LISTED + 1) + 1)
        if missing := [number for number in wanted if number not in have]:
            names = [f"model-{number:0{digits}}-of-{total}.safetensors" for number in missing]
            raise CheckpointError(
                f"{folder}: {len(have)} of {int(total)} shards are here; missing: "
                f"{_listed(names)}; download them again"
            )


def _other_formats(folder: Path) -> str:
    """Say what a folder without safetensors has instead."""
    suffixes = {path.suffix for path in folder.iterdir()} if folder.is_dir() else set()
    if suffixes & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        return (
            ", only pickled weights (.bin, .pt), which can run any code when they are opened and "
            "are never read; take a checkpoint with safetensors"
        )
    if ".gguf" in suffixes:
        return ", only GGUF, which is not supported; take a checkpoint with safetensors"
    return f" and no {INDEX_FILE}; check the path, or download the weights again"


def open_checkpoint(folder: str | Path, config: Config) -> Checkpoint:
    """Find the files of a checkpoint and check their headers against its config.

    Raises:
        CheckpointError: Files or tensors are missing, damaged, unexpected, or of a wrong shape or
            dtype; each is named, at most ten of a kind and a count.
    """
    folder = Path(folder)
    stored = _read_headers(folder)
    tensors: dict[str, StoredTensor] = {}  # by canonical name
    for name, tensor in stored.items():
        canonical = canonical_name(name)
        if canonical in tensors:
            raise CheckpointError(
                f"{folder}: {_shown(tensors[canonical].name)} and {_shown(name)} are the same "
                "parameter; take a checkpoint with one of them"
            )
        tensors[canonical] = tensor
    notes: list[str] = []
    _drop_tied_head(folder, tensors, notes)
    config = _match_front_ends(config, tensors, notes)
    quantization = _find_quantized(folder, config, tensors)
    _check_tensors(folder, config, tensors, quantization)
    return Checkpoint(folder, config, tensors, quantization, tuple(notes))


def _read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files by the names in them, which agree with the index."""
    files, weight_map = find_files(folder)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in stored:
                raise CheckpointError(
                    f"{folder}: {_shown(name)} is in {stored[name].file.name} and in {file.name}; "
                    "download the checkpoint again into an empty folder"
                )
            stored[name] = tensor
    if weight_map is not None:
        found = {name: tensor.file.name for name, tensor in stored.items()}
        wrong = [
            name for name in {**weight_map, **found} if weight_map.get(name) != found.get(name)
        ]
        if wrong:
            raise CheckpointError(
                f"{folder}: {INDEX_FILE} and the files disagree on {len(wrong)} tensors: "
                f"{_listed(wrong)}; download the checkpoint again into an empty folder"
            )
    return stored


def _drop_tied_head(folder: Path, tensors: dict[str, StoredTensor], notes: list[str]) -> None:
    """Leave out an lm_head that repeats the embedding, as some converters write it."""
    for name in [name for name in tensors if name.startswith("lm_head.")]:
        head = tensors.pop(name)
        part = name.removeprefix("lm_head.")
        embedding = tensors.get(f"language_model.embed_tokens.{part}")
        if embedding is None or not _have_same_bytes(head, embedding):
            raise CheckpointError(
                f"{folder}: {_shown(head.name)} differs from the embedding; Gemma 4 12B uses one "
                "matrix for both; take a checkpoint with tied embeddings"
            )
        notes.append(f"{head.name} repeats the embedding and was left out")


def _have_same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as one_stream, other.file.open("rb") as other_stream:
        one_stream.seek(one.offset)
        other_stream.seek(other.offset)
        for start in range(0, one.nbytes, _COMPARED_BYTES):
            count = min(_COMPARED_BYTES, one.nbytes - start)
            if one_stream.read(count) != other_stream.read(count):
                return False
    return True


def _match_front_ends(config: Config, tensors: dict[str, StoredTensor], notes: list[str]) -> Config:
    """Return the config without a front end that has no tensors at all; text works without it."""
    for front_end, (key, prefixes, media) in _FRONT_ENDS.items():
        have = [name for name in tensors if name.startswith(prefixes)]
        is_configured = getattr(config, key) is not None
        if is_configured and not have:
            notes.append(f"the checkpoint has no tensors of the {front_end} front end: no {media}")
            config = replace(config, **{key: None})
        elif have and not is_configured:
            notes.append(
                f"config.json has no {key}: {len(have)} tensors of the {front_end} front end were "
                f"left out, no {media}"
            )
            for name in have:
                del tensors[name]
    return config


def _find_quantized(
    folder: Path, config: Config, tensors: Mapping[str, StoredTensor]
) -> dict[str, QuantizationSettings]:
    """Return the settings of every module that has scales, by canonical path."""
    paths = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not paths:
        return {}
    if config.quantization is None:
        raise CheckpointError(
            f"{folder}: {len(paths)} modules are quantized ({_listed(paths)}), but config.json has "
            "no quantization; take the config.json that belongs to the weights"
        )
    default = config.quantization.default
    overrides = {
        canonical_name(path): settings for path, settings in config.quantization.overrides.items()
    }
    return {path: overrides.get(path) or default for path in paths}


def _check_tensors(
    folder: Path,
    config: Config,
    tensors: Mapping[str, StoredTensor],
    quantization: Mapping[str, QuantizationSettings],
) -> None:
    """Compare names, shapes, and dtypes with what the config asks for."""
    expected = {name: (shape, _FLOATS) for name, shape in expected_tensors(config).items()}
    for path, settings in quantization.items():
        shape, _ = expected.get(f"{path}.weight", ((), ()))
        if len(shape) == 2:
            expected.update(_expected_quantized(path, shape, settings))
    problems: list[str] = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"{len(missing)} missing{_front_end_of(missing)}: {_listed(missing)}")
    if unexpected := [tensor.name for name, tensor in tensors.items() if name not in expected]:
        problems.append(f"{len(unexpected)} unexpected: {_listed(unexpected)}")
    present = [(tensors[name], *expected[name]) for name in expected if name in tensors]
    wrong_shapes = [
        f"{tensor.name} is {list(tensor.shape)} instead of {list(shape)}"
        for tensor, shape, _ in present
        if tensor.shape != shape
    ]
    if wrong_shapes:
        problems.append(f"{len(wrong_shapes)} of a wrong shape: {_listed(wrong_shapes)}")
    wrong_dtypes = [
        f"{tensor.name} is {tensor.dtype} instead of {' or '.join(dtypes)}"
        for tensor, _, dtypes in present
        if tensor.dtype not in dtypes
    ]
    if wrong_dtypes:
        problems.append(f"{len(wrong_dtypes)} of a wrong dtype: {_listed(wrong_dtypes)}")
    if problems:
        raise CheckpointError(
            f"{folder}: the tensors do not fit config.json; {'; '.join(problems)}; take all files "
            "from one checkpoint, or download them again"
        )


def _expected_quantized(
    path: str, shape: tuple[int, ...], settings: QuantizationSettings
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Return shapes and dtypes of a quantized matrix [out, in], packed along its rows."""
    rows, columns = shape
    groups = (rows, columns // settings.group_size)
    is_affine = settings.mode == "affine"
    parts = {
        f"{path}.weight": ((rows, columns * settings.bits // 32), ("U32",)),
        f"{path}.scales": (groups, _FLOATS if is_affine else ("U8",)),
    }
    if is_affine:
        parts[f"{path}.biases"] = (groups, _FLOATS)
    return parts


def _front_end_of(missing: Sequence[str]) -> str:
    """Name the front end whose tensors are missing, if they are all of one."""
    for front_end, (_, prefixes, _) in _FRONT_ENDS.items():
        if all(name.startswith(prefixes) for name in missing):
            return f" of the {front_end} front end"
    return ""


def _is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """Whether a matrix is quantized while loading: the decoder's, and never a front end's."""
    return (
        name.startswith("language_model.")
        and name.endswith(".weight")
        and len(shape) == 2
        and shape[1] % QUANTIZE_GROUP_SIZE == 0
    )


def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: mx.Dtype,
    quantize: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, mx.array], dict[str, dict[str, Any]]]:
    """Load the parameters of a checked checkpoint.

    Without `quantize` they stay lazy: read from the file, and cast, when they are first used.
    With it each matrix is read, quantized, and freed before the next, so that memory holds the
    result and the largest matrix.

    Args:
        checkpoint: From `open_checkpoint`.
        dtype: Of floating-point parameters, scales and biases of quantized ones included.
        quantize: 4 or 8 bits for the decoder's matrices and the embedding; None keeps them.
        progress: Called with (matrices done, matrices in all) while quantizing.

    Returns:
        Arrays by canonical name, and `group_size`, `bits`, and `mode` of each quantized module by
        path.

    Raises:
        OptionError: `quantize` is not 4 or 8, or the checkpoint is quantized already.
    """
    if quantize is not None:
        check_quantize(checkpoint, quantize)
    settings = {path: asdict(of_module) for path, of_module in checkpoint.quantization.items()}
    names = [
        name
        for name, tensor in checkpoint.tensors.items()
        if quantize and _is_quantizable(name, tensor.shape)
    ]
    lazy = _load_lazily(checkpoint)
    arrays: dict[str, mx.array] = {}
    for done, name in enumerate(names):
        if progress:
            progress(done, len(names))
        path = name.removesuffix(".weight")
        chosen = QuantizationSettings(QUANTIZE_GROUP_SIZE, cast(int, quantize))
        weight, scales, biases = mx.quantize(
            lazy.pop(name), group_size=chosen.group_size, bits=chosen.bits, mode=chosen.mode
        )
        arrays[name] = weight
        arrays[f"{path}.scales"] = scales.astype(dtype)
        arrays[f"{path}.biases"] = biases.astype(dtype)
        settings[path] = asdict(chosen)
        # One at a time, and no freed buffer is kept: otherwise all of the original piles up.
        mx.eval(arrays[name], arrays[f"{path}.scales"], arrays[f"{path}.biases"])
        mx.clear_cache()
    if progress and names:
        progress(len(names), len(names))
    for name, array in lazy.items():
        arrays[name] = array.astype(dtype) if checkpoint.tensors[name].is_float else array
    return arrays, settings


def check_quantize(checkpoint: Checkpoint, quantize: int) -> None:
    """Refuse bits that `load_weights` does not make, or a checkpoint that has its own.

    Raises:
        OptionError: `quantize` is not 4 or 8, or the checkpoint is quantized already.
    """
    if quantize not in QUANTIZE_BITS:
        raise OptionError(
            f"quantize is {quantize} bits; allowed are {' and '.join(map(str, QUANTIZE_BITS))}"
        )
    if checkpoint.quantization:
        bits = sorted({settings.bits for settings in checkpoint.quantization.values()})
        raise OptionError(
            f"{checkpoint.folder} is already quantized to {', '.join(map(str, bits))} bits; leave "
            "quantize out, or take the bfloat16 checkpoint"
        )


def _load_lazily(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return every tensor by canonical name; its bytes are read when it is evaluated."""
    files = {
        file: cast(dict[str, mx.array], mx.load(str(file)))
        for file in sorted({tensor.file for tensor in checkpoint.tensors.values()})
    }
    return {name: files[tensor.file][tensor.name] for name, tensor in checkpoint.tensors.items()}
