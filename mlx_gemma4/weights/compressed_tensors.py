"""Modules that compressed-tensors has packed, as MLX's affine mode reads them.

Google's `qat-w4a16-ct` stores a matrix [out, in] as

    weight_packed  [out, in / 8] int32    nibbles, the first in the lowest bits: value + 8
    weight_scale   [out, in / group]      weight = scale * value
    weight_shape   [2] int64              out, in

MLX's is scale * code + bias with codes packed in the same way.  So the words are taken over as they
are, value + 8 is the code, and the bias is -8 * scale: a power of two, which changes the exponent
alone and is exact in every float.  Nothing is rounded and no weight is touched.

Source: compressed_tensors/compressors/pack_quantized, pack_to_int32.
"""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_gemma4.config import QuantizationConfig
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights.header import MAX_LISTED, StoredTensor, listed, shown
from mlx_gemma4.weights.names import canonical_name
from mlx_gemma4.weights.reading import read_bytes

_PARTS = ("weight_packed", "weight_scale", "weight_shape")
_CODES_OF_WORD = 8


def rename_packed(
    folder: Path, quantization: QuantizationConfig | None, tensors: dict[str, StoredTensor]
) -> None:
    """Replace the parts of packed modules by `weight` and `scales` of MLX; biases follow from them.

    Args:
        folder: For messages.
        quantization: Of the checkpoint's config.
        tensors: By canonical name; changed.

    Raises:
        CheckpointError: A module is not whole, or the config says that it is not packed.
    """
    paths = list(
        dict.fromkeys(
            path for path, _, part in (name.rpartition(".") for name in tensors) if part in _PARTS
        )
    )
    if not paths:
        return
    if quantization is None or not quantization.is_pack_quantized:
        raise CheckpointError(
            f"{folder}: {len(paths)} modules are packed by compressed-tensors ({listed(paths)}), "
            "but config.json has no quantization_config of that kind; take the config.json that "
            "belongs to the weights"
        )
    ignored = {canonical_name(path) for path in quantization.ignore}
    if wrong := [path for path in paths if path in ignored]:
        raise CheckpointError(
            f"{folder}: {len(wrong)} modules are packed that quantization_config.ignore names: "
            f"{listed(wrong)}; take all files from one checkpoint"
        )
    missing = [
        f"{path}.{part}" for path in paths for part in _PARTS if f"{path}.{part}" not in tensors
    ]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} parts of packed modules are missing: {listed(missing)}; "
            "take all files from one checkpoint, or download them again"
        )
    if twice := [path for path in paths if f"{path}.weight" in tensors]:
        raise CheckpointError(
            f"{folder}: {len(twice)} modules are packed and plain at once: {listed(twice)}; take "
            "a checkpoint with one of them"
        )
    wrong = []
    for path in paths:
        packed, scale, shape = (tensors.pop(f"{path}.{part}") for part in _PARTS)
        if problem := _find_mismatch(packed, shape):
            wrong.append(problem)
        # The same 32 bits; MLX calls them unsigned.
        tensors[f"{path}.weight"] = replace(packed, dtype="U32")
        tensors[f"{path}.scales"] = scale
    if wrong:
        raise CheckpointError(
            f"{folder}: {len(wrong)} packed modules are not what they say: "
            f"{'; '.join(wrong[:MAX_LISTED])}; take all files from one checkpoint, or download "
            "them again"
        )


def _find_mismatch(packed: StoredTensor, shape: StoredTensor) -> str | None:
    """Say what weight_shape, whose content is read, and weight_packed disagree on."""
    if (shape.dtype, shape.shape) != ("I64", (2,)):
        return f"{shown(shape.name)} is {shape.dtype} {list(shape.shape)} instead of I64 [2]"
    if packed.dtype != "I32" or len(packed.shape) != 2:
        return f"{shown(packed.name)} is {packed.dtype} {list(packed.shape)} instead of I32 [R, C]"
    stated = np.frombuffer(read_bytes(shape, 0, shape.nbytes), "<i8").tolist()
    held = [packed.shape[0], packed.shape[1] * _CODES_OF_WORD]
    if stated != held:
        return f"{shown(shape.name)} says {stated}, and the packed words are {held}"
    return None


def symmetric_biases(scales: mx.array, bits: int) -> mx.array:
    """Return the affine mode's biases where code 2**(bits - 1) stands for 0.

    Args:
        scales: [R, K / group_size], in the dtype that they are used in.
        bits: Of a code.
    """
    return scales * -(1 << (bits - 1))
