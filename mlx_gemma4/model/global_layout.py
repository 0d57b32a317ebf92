"""The layout of global layers' weights: rotated dimensions first, k_norm folded into q_norm.

A head of a global layer has 512 dimensions, of which the pairs (i, i + 256) for i < 64 rotate.  In
the model the 128 rotated ones stand first, so that key and value are two slices of one row:

    checkpoint   [rotated 64 | plain 192 | rotated 64 | plain 192]
    query, key   [rotated 128 | plain 384]
    value        [plain 384 | rotated 128]

Rows of q_proj and k_proj and the norms' weights take the second order, columns of o_proj the third,
which is the order in which attention returns values.  This is exact: a permutation, and one
product of two weights.
"""

import mlx.core as mx
import numpy as np

from mlx_gemma4.config import TextConfig
from mlx_gemma4.errors import CheckpointError


def global_permutations(config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the checkpoint's dimension at each place of a key and of a value, [Dh] int32 each."""
    head_dim = config.global_head_dim
    rope = config.rope_parameters["full_attention"]
    half, rotated_half = head_dim // 2, int(rope.partial_rotary_factor * head_dim // 2)
    dims = np.arange(head_dim, dtype=np.int32)
    is_rotated = dims % half < rotated_half
    rotated, plain = dims[is_rotated], dims[~is_rotated]
    return np.concatenate([rotated, plain]), np.concatenate([plain, rotated])


def apply_global_layout(
    weights: dict[str, mx.array], config: TextConfig, group_sizes: dict[str, int]
) -> tuple[dict[str, mx.array], dict[str, int]]:
    """Return the weights, and the quantization groups, with every global layer in this layout.

    Args:
        weights: Canonical parameters of a checkpoint, `language_model.layers.N...`; quantized
            modules have `weight`, `scales`, and perhaps `biases`.
        config: Of the text model.
        group_sizes: Quantization group of each quantized module, by module path.

    Raises:
        CheckpointError: Columns of a quantized o_proj cannot be permuted, because even MLX's
            smallest group is wider than a run of dimensions that stay together.
    """
    key_order, value_order = global_permutations(config)
    rope = config.rope_parameters["full_attention"]
    rotated = 2 * int(rope.partial_rotary_factor * config.global_head_dim // 2)
    weights, group_sizes = dict(weights), dict(group_sizes)
    for index in range(config.num_hidden_layers):
        if config.is_sliding(index):
            continue
        prefix = f"language_model.layers.{index}.self_attn"
        heads = {
            "q_proj": config.num_attention_heads,
            "k_proj": config.num_global_key_value_heads,
        }
        for name, count in heads.items():
            order = mx.array(_of_heads(key_order, count))
            for part in ("weight", "scales", "biases"):
                if (path := f"{prefix}.{name}.{part}") in weights:
                    weights[path] = weights[path][order]
        q_norm = weights[f"{prefix}.q_norm.weight"]
        k_norm = weights[f"{prefix}.k_norm.weight"][mx.array(key_order)]
        folded = k_norm.astype(mx.float32)
        folded[:rotated] = 1
        q_norm = q_norm[mx.array(key_order)]
        weights[f"{prefix}.q_norm.weight"] = (q_norm * folded).astype(q_norm.dtype)
        weights[f"{prefix}.k_norm.weight"] = k_norm[:rotated]
        columns = _of_heads(value_order, config.num_attention_heads)
        _permute_columns(weights, f"{prefix}.o_proj", columns, group_sizes)
    return weights, group_sizes


def _of_heads(order: np.ndarray, count: int) -> np.ndarray:
    """Repeat the order of one head for `count` heads that lie one after the other."""
    return (np.arange(count, dtype=np.int32)[:, None] * len(order) + order).reshape(-1)


def _permute_columns(
    weights: dict[str, mx.array], path: str, columns: np.ndarray, group_sizes: dict[str, int]
) -> None:
    """Permute input dimensions of a matrix; of a quantized one whole groups, with their scales.

    A group wider than a run of dimensions is first written as narrower ones with equal scales.
    """
    if path not in group_sizes:
        weights[f"{path}.weight"] = weights[f"{path}.weight"][:, mx.array(columns)]
        return
    group = group_sizes[path]
    while not _keeps_groups(columns, group):
        if group % 64:
            raise CheckpointError(
                f"{path}: quantized in groups of {group}, but its head dimensions move in shorter "
                "runs; keep this matrix unquantized, or use a smaller group"
            )
        group //= 2
        for part in ("scales", "biases"):
            if (name := f"{path}.{part}") in weights:
                weights[name] = mx.repeat(weights[name], 2, axis=1)
    group_sizes[path] = group
    order = mx.array(columns[::group] // group)
    for part in ("weight", "scales", "biases"):
        if (name := f"{path}.{part}") in weights:
            matrix = weights[name]
            grouped = matrix.reshape(matrix.shape[0], len(order), -1)
            weights[name] = grouped[:, order].reshape(matrix.shape)


def _keeps_groups(columns: np.ndarray, group: int) -> bool:
    """Whether the permutation moves aligned groups of columns as a whole."""
    if len(columns) % group:
        return False
    runs = columns.reshape(-1, group)
    return not (runs[:, 0] % group).any() and bool((np.diff(runs, axis=1) == 1).all())
