"""x @ W^T for a quantized W.

MLX's CPU backend multiplies one row of x at a time, whatever their number, and reads all of W for
each.  From a few rows on it is quicker to dequantize W, a block of rows at a time, and to leave the
product to BLAS: the values are the same, and so is the result but for the order of sums.
"""

import mlx.core as mx

# Dequantizing costs about as much as multiplying three rows by the packed matrix.
MIN_ROWS = 4

# Of one dequantized block, float32: it stays in the cache until it is multiplied.
BLOCK_BYTES = 4 << 20


def quantized_matmul(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    *,
    group_size: int,
    bits: int,
    mode: str,
) -> mx.array:
    """Return x @ dequantize(weight)^T.

    Args:
        x: [..., D_in] floating point.
        weight: [D_out, D_in * bits / 32] uint32, packed as `mx.quantize` does.
        scales: [D_out, D_in / group_size].
        biases: Like `scales`; None in modes without.
        group_size: Columns that share a scale.
        bits: Of a weight.
        mode: Of `mx.quantize`.

    Returns:
        [..., D_out] in the dtype of x.
    """
    rows = x.size // x.shape[-1]
    # Elsewhere than in float32 MLX's product rounds differently, and the GPU has its own kernels.
    is_cpu = mx.default_device() == mx.Device(mx.cpu)
    if not is_cpu or x.dtype != mx.float32 or rows < MIN_ROWS:
        return mx.quantized_matmul(
            x, weight, scales, biases, True, group_size=group_size, bits=bits, mode=mode
        )
    size = max(1, BLOCK_BYTES // (4 * x.shape[-1]))
    parts: list[mx.array] = []
    for start in range(0, weight.shape[0], size):
        block = slice(start, start + size)
        matrix = mx.dequantize(
            weight[block],
            scales[block],
            None if biases is None else biases[block],
            group_size=group_size,
            bits=bits,
            mode=mode,
        )
        # Modes without biases dequantize to bfloat16, which holds their values exactly.
        parts.append(x @ matrix.astype(mx.float32).T)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
