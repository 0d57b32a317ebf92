"""Rows of a stored tensor by their bytes in the file.

`mx.load` maps nothing: it copies a tensor whole, and a memory map that has been walked counts whole
in a process's memory.  A range of bytes costs what it holds, which is what the converter and the
quality report live on.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights.header import StoredTensor

# safetensors' dtype -> what NumPy calls its bits, and what MLX calls them.
_DTYPES: dict[str, tuple[type[np.generic], mx.Dtype]] = {
    "BOOL": (np.bool_, mx.bool_),
    "U8": (np.uint8, mx.uint8),
    "I8": (np.int8, mx.int8),
    "U16": (np.uint16, mx.uint16),
    "I16": (np.int16, mx.int16),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "U32": (np.uint32, mx.uint32),
    "I32": (np.int32, mx.int32),
    "F32": (np.float32, mx.float32),
    "U64": (np.uint64, mx.uint64),
    "I64": (np.int64, mx.int64),
}


def read_rows(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> mx.array:
    """Return rows start..stop of a tensor, [stop - start, ...], in the dtype of the file.

    Args:
        tensor: From a header that has been checked.
        start: First row.
        stop: Row after the last; None is all of them.

    Raises:
        CheckpointError: The file has become shorter, cannot be read, or MLX has no such dtype.
    """
    if tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has dtype {tensor.dtype}, which cannot be "
            f"computed with; allowed are {', '.join(_DTYPES)}; take another conversion"
        )
    bits, dtype = _DTYPES[tensor.dtype]
    rows = tensor.shape[0] if tensor.shape else 1
    stop = rows if stop is None else min(stop, rows)
    row_bytes = tensor.nbytes // max(rows, 1)
    content = read_bytes(tensor, start * row_bytes, stop * row_bytes)
    shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
    array = mx.array(cast(Any, np.frombuffer(content, bits).reshape(shape)))
    return array if array.dtype == dtype else array.view(dtype)


def read_bytes(tensor: StoredTensor, start: int, stop: int) -> bytearray:
    """Return bytes start..stop of a tensor.

    Raises:
        CheckpointError: The file has become shorter, or cannot be read.
    """
    content = bytearray(stop - start)
    view, done = memoryview(content), 0
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.offset + start)
            while done < len(content):
                count = stream.readinto(view[done:])
                if not count:
                    raise CheckpointError(
                        f"{tensor.file} has become shorter while it was read; download it again"
                    )
                done += count
    except OSError as error:
        raise CheckpointError(
            f"cannot read {tensor.file}: {error.strerror}; check the disk and the permissions"
        ) from None
    return content


def row_blocks(tensor: StoredTensor, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of rows that hold about `block_bytes` each, at least one row."""
    rows = tensor.shape[0] if tensor.shape else 1
    row_bytes = tensor.nbytes // rows if rows else 0
    step = max(1, block_bytes // max(row_bytes, 1))
    # The last block is no sliver.
    count = max(1, math.ceil(rows / step))
    step = math.ceil(rows / count) if rows else 1
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
