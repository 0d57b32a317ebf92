"""Projections of one input as one matrix: q, k, and v of a layer, rows one after the other.

A decoded token then reads the same bytes in fewer launches.  Checkpoints stay as they are: rows are
joined when a model is loaded for use, lazily, so that memory holds one layer's rows twice at most.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.model.decoder import LanguageModel
from mlx_gemma4.model.linear import Linear, QuantizedLinear

# Rows and columns of a matrix that any group size divides.
_PACKABLE = 128


def fuse_projections(language_model: LanguageModel) -> None:
    """Replace q_proj, k_proj, and v_proj of every layer by `qkv_proj`, where they can be joined.

    Matrices that are stored in different ways, as recipes of mixed bits have them, stay apart.
    """
    for layer in language_model.layers:
        attention = layer.self_attn
        names = [name for name in ("q_proj", "k_proj", "v_proj") if name in attention]
        if joined := join_rows([attention[name] for name in names]):
            for name in names:
                del attention[name]
            attention.qkv_proj = joined


def join_rows(modules: Sequence[nn.Module]) -> Linear | QuantizedLinear | None:
    """Return one module whose output is that of all, one after the other; None if it cannot be."""
    if all(type(module) is Linear for module in modules):
        joined: Linear | QuantizedLinear = Linear(1, 1, bias=False)
    elif all(type(module) is QuantizedLinear for module in modules):
        settings: set[Any] = {(module.group_size, module.bits, module.mode) for module in modules}
        if len(settings) != 1:
            return None
        group_size, bits, mode = settings.pop()
        # The sizes are those of no part, but ones that every mode can pack.
        joined = QuantizedLinear(_PACKABLE, _PACKABLE, False, group_size, bits, mode)
    else:
        return None
    parts: list[dict[str, Any]] = [dict(module.parameters()) for module in modules]
    dtypes = [{name: array.dtype for name, array in of_module.items()} for of_module in parts]
    if any(of_module != dtypes[0] for of_module in dtypes):
        return None
    for name in parts[0]:
        joined[name] = mx.concatenate([of_module[name] for of_module in parts], axis=0)
    return joined
