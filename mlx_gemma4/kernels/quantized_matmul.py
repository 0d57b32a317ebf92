"""x @ W^T for a quantized W: which kernel multiplies, by the number of rows of x.

One row, two to four, and five to sixteen have Metal kernels; above, MLX's own is at the bound of
arithmetic.

MLX's CPU backend multiplies one row of x at a time, whatever their number, and reads all of W for
each.  From a few rows on it is quicker to dequantize W, a block of rows at a time, and to leave the
product to BLAS: the values are the same, and so is the result but for the order of sums.
"""

import mlx.core as mx

from mlx_gemma4.kernels import quantized_matvec, quantized_small_batch, registry
from mlx_gemma4.kernels.quantized_matrix import QuantizedMatrix

# Dequantizing costs about as much as multiplying three rows by the packed matrix.
MIN_ROWS = 4

# Of one dequantized block, float32: it stays in the cache until it is multiplied.
BLOCK_BYTES = 4 << 20


def quantized_matmul(x: mx.array, matrix: QuantizedMatrix, *, exact: bool = False) -> mx.array:
    """Return x @ W^T.

    Args:
        x: [..., K] floating point.
        matrix: W [N, K].
        exact: Each row of x gives the same bits as it does alone, so that a greedy choice verified
            among others is the choice that decoding makes.  Meant for up to 16 rows, for which
            the kernel reads W once; where it is off, W is read for every row.

    Returns:
        [..., N] in the dtype of x.
    """
    rows = x.size // x.shape[-1]
    name = _kernel_name(rows, exact)
    if name is not None and registry.is_on(name) and matrix.fits(x):
        module = quantized_small_batch if name == "quantized_small_batch" else quantized_matvec
        return module.launch(x, matrix)[0]
    if exact and rows > 1:
        flat = x.reshape(rows, -1)
        alone = [quantized_matmul(flat[row : row + 1], matrix) for row in range(rows)]
        return mx.concatenate(alone).reshape(*x.shape[:-1], -1)
    # Elsewhere than in float32 MLX's product rounds differently, and the GPU has its own kernels.
    is_cpu = mx.default_device() == mx.Device(mx.cpu)
    if not is_cpu or x.dtype != mx.float32 or rows < MIN_ROWS:
        return matrix.multiply(x)
    return _multiply_blocks(x, matrix)


def _kernel_name(rows: int, exact: bool) -> str | None:
    """Return the kernel for so many rows of x; None if there is none."""
    if rows == 1 or (exact and rows > 1):
        return "quantized_matvec"
    if 1 < rows <= quantized_matvec.MAX_VECTORS:
        return "quantized_multivector"
    return "quantized_small_batch" if 1 < rows <= quantized_small_batch.MAX_ROWS else None


def _multiply_blocks(x: mx.array, matrix: QuantizedMatrix) -> mx.array:
    """Return x @ W^T, a block of dequantized rows of W at a time."""
    size = max(1, BLOCK_BYTES // (4 * x.shape[-1]))
    parts: list[mx.array] = []
    for start in range(0, matrix.num_rows, size):
        block = slice(start, start + size)
        # When its turn comes, and not as soon as MLX can: blocks of all layers would pile up.
        packed = mx.depends([matrix.weight[block]], [parts[-1] if parts else x])[0]
        rows = mx.dequantize(
            packed,
            matrix.scales[block],
            None if matrix.biases is None else matrix.biases[block],
            group_size=matrix.group_size,
            bits=matrix.bits,
            mode=matrix.mode,
        )
        # Modes without biases dequantize to bfloat16, which holds their values exactly.
        parts.append(x @ rows.astype(mx.float32).T)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
