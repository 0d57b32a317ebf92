"""Checkpoint: files whose headers fit their config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_gemma4.config import Config, QuantizationConfig, QuantizationSettings
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights.compressed_tensors import rename_packed
from mlx_gemma4.weights.files import INDEX_FILE, find_files
from mlx_gemma4.weights.header import FLOATS, StoredTensor, listed, read_header, shown
from mlx_gemma4.weights.names import canonical_name, expected_tensors

# Quantization while loading: groups of 64, as MLX's converters write by default.
QUANTIZE_GROUP_SIZE = 64
_COMPARED_BYTES = 8 * 1024 * 1024
# Front end -> its key in Config, the prefixes of its tensors, what it is for.
_FRONT_ENDS = {
    "vision": ("vision_config", ("vision_embedder.", "embed_vision."), "pictures and videos"),
    "audio": ("audio_config", ("embed_audio.",), "sounds"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked against its config.

    Attributes:
        folder: Where it lies.
        config: As given, but without a front end that has no tensors.
        tensors: By canonical name; exactly the model's parameters, but for the biases of symmetric
            modules.
        quantization: Of each module that is stored quantized, by canonical path.
        notes: What was left out: one line each.
    """

    folder: Path
    config: Config
    tensors: Mapping[str, StoredTensor]
    quantization: Mapping[str, QuantizationSettings]
    notes: tuple[str, ...] = ()

    @property
    def symmetric(self) -> tuple[str, ...]:
        """Modules of affine mode without stored biases: they follow from the scales.

        See `compressed_tensors.symmetric_biases`.
        """
        return tuple(
            path
            for path, settings in self.quantization.items()
            if settings.mode == "affine" and f"{path}.biases" not in self.tensors
        )

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
            if quantize and is_quantizable(name, tensor.shape):
                total += count * quantize // 8 + 2 * item_bytes * count // QUANTIZE_GROUP_SIZE
            else:
                total += count * item_bytes if tensor.is_float else tensor.nbytes
        for path in self.symmetric:
            total += math.prod(self.tensors[f"{path}.scales"].shape) * item_bytes
        return total


def open_checkpoint(folder: str | Path, config: Config) -> Checkpoint:
    """Find the files of a checkpoint and check their headers against its config.

    Raises:
        CheckpointError: Files or tensors are missing, damaged, unexpected, or of a wrong shape or
            dtype; each is named, at most ten of a kind and a count.
    """
    folder = Path(folder)
    stored = read_headers(folder)
    tensors: dict[str, StoredTensor] = {}  # by canonical name
    for name, tensor in stored.items():
        canonical = canonical_name(name)
        if canonical in tensors:
            raise CheckpointError(
                f"{folder}: {shown(tensors[canonical].name)} and {shown(name)} are the same "
                "parameter; take a checkpoint with one of them"
            )
        tensors[canonical] = tensor
    notes: list[str] = []
    _drop_tied_head(folder, tensors, notes)
    config = _match_front_ends(config, tensors, notes)
    rename_packed(folder, config.quantization, tensors)
    quantization = check_tensors(folder, expected_tensors(config), config.quantization, tensors)
    return Checkpoint(folder, config, tensors, quantization, tuple(notes))


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files by the names in them, which agree with the index."""
    files, weight_map = find_files(folder)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in stored:
                raise CheckpointError(
                    f"{folder}: {shown(name)} is in {stored[name].file.name} and in {file.name}; "
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
                f"{listed(wrong)}; download the checkpoint again into an empty folder"
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
                f"{folder}: {shown(head.name)} differs from the embedding; Gemma 4 12B uses one "
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


def check_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: QuantizationConfig | None,
    tensors: Mapping[str, StoredTensor],
) -> dict[str, QuantizationSettings]:
    """Return the settings of every quantized module, by canonical path, if all tensors fit.

    Args:
        folder: For messages.
        shapes: Of every parameter by canonical name, as if nothing were quantized.
        config: Of the quantization, if config.json has one.
        tensors: By canonical name.

    Raises:
        CheckpointError: Some are missing, unexpected, or of a wrong shape or dtype.
    """
    quantization = _find_quantized(folder, config, tensors)
    _check_fit(folder, shapes, config, tensors, quantization)
    return quantization


def _find_quantized(
    folder: Path, config: QuantizationConfig | None, tensors: Mapping[str, StoredTensor]
) -> dict[str, QuantizationSettings]:
    """Return the settings of every module that has scales, by canonical path."""
    paths = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not paths:
        return {}
    if config is None:
        raise CheckpointError(
            f"{folder}: {len(paths)} modules are quantized ({listed(paths)}), but config.json has "
            "no quantization; take the config.json that belongs to the weights"
        )
    overrides = {canonical_name(path): settings for path, settings in config.overrides.items()}
    return {path: overrides.get(path) or config.default for path in paths}


def _check_fit(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: QuantizationConfig | None,
    tensors: Mapping[str, StoredTensor],
    quantization: Mapping[str, QuantizationSettings],
) -> None:
    """Compare names, shapes, and dtypes with what the config asks for."""
    expected = {name: (shape, FLOATS) for name, shape in shapes.items()}
    is_symmetric = config is not None and config.is_pack_quantized
    for path, settings in quantization.items():
        shape, _ = expected.get(f"{path}.weight", ((), ()))
        if len(shape) == 2:
            expected.update(_expected_quantized(path, shape, settings, is_symmetric))
    problems: list[str] = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"{len(missing)} missing{_front_end_of(missing)}: {listed(missing)}")
    if unexpected := [tensor.name for name, tensor in tensors.items() if name not in expected]:
        problems.append(f"{len(unexpected)} unexpected: {listed(unexpected)}")
    present = [(tensors[name], *expected[name]) for name in expected if name in tensors]
    wrong_shapes = [
        f"{tensor.name} is {list(tensor.shape)} instead of {list(shape)}"
        for tensor, shape, _ in present
        if tensor.shape != shape
    ]
    if wrong_shapes:
        problems.append(f"{len(wrong_shapes)} of a wrong shape: {listed(wrong_shapes)}")
    wrong_dtypes = [
        f"{tensor.name} is {tensor.dtype} instead of {' or '.join(dtypes)}"
        for tensor, _, dtypes in present
        if tensor.dtype not in dtypes
    ]
    if wrong_dtypes:
        problems.append(f"{len(wrong_dtypes)} of a wrong dtype: {listed(wrong_dtypes)}")
    if problems:
        raise CheckpointError(
            f"{folder}: the tensors do not fit config.json; {'; '.join(problems)}; take all files "
            "from one checkpoint, or download them again"
        )


def _expected_quantized(
    path: str, shape: tuple[int, ...], settings: QuantizationSettings, is_symmetric: bool
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Return shapes and dtypes of a quantized matrix [out, in], packed along its rows."""
    rows, columns = shape
    groups = (rows, columns // settings.group_size)
    is_affine = settings.mode == "affine"
    parts = {
        f"{path}.weight": ((rows, columns * settings.bits // 32), ("U32",)),
        f"{path}.scales": (groups, FLOATS if is_affine else ("U8",)),
    }
    if is_affine and not is_symmetric:
        parts[f"{path}.biases"] = (groups, FLOATS)
    return parts


def _front_end_of(missing: Sequence[str]) -> str:
    """Name the front end whose tensors are missing, if they are all of one."""
    for front_end, (_, prefixes, _) in _FRONT_ENDS.items():
        if all(name.startswith(prefixes) for name in missing):
            return f" of the {front_end} front end"
    return ""


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """Whether a matrix is quantized while loading: the decoder's, and never a front end's."""
    return (
        name.startswith("language_model.")
        and name.endswith(".weight")
        and len(shape) == 2
        and shape[1] % QUANTIZE_GROUP_SIZE == 0
    )
