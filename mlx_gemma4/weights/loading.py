"""Parameters out of a checked checkpoint, lazily or quantized one by one."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import mlx.core as mx

from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.errors import OptionError
from mlx_gemma4.weights.checkpoint import QUANTIZE_GROUP_SIZE, Checkpoint, is_quantizable
from mlx_gemma4.weights.compressed_tensors import symmetric_biases

QUANTIZE_BITS = (4, 8)


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
        if quantize and is_quantizable(name, tensor.shape)
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
    for path in checkpoint.symmetric:
        # From scales in the dtype in which both are used: code and bias then cancel out exactly.
        scales = arrays[f"{path}.scales"]
        arrays[f"{path}.biases"] = symmetric_biases(scales, checkpoint.quantization[path].bits)
        arrays[f"{path}.weight"] = arrays[f"{path}.weight"].view(mx.uint32)
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
