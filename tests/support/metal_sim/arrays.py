"""mx.arrays as bytes, and bytes as mx.arrays."""

import ctypes
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

NUMPY_TYPES = {
    mx.bool_: np.bool_,
    mx.uint8: np.uint8,
    mx.uint16: np.uint16,
    mx.uint32: np.uint32,
    mx.uint64: np.uint64,
    mx.int8: np.int8,
    mx.int16: np.int16,
    mx.int32: np.int32,
    mx.int64: np.int64,
    mx.float16: np.float16,
    mx.bfloat16: np.uint16,  # NumPy has none: its bits
    mx.float32: np.float32,
    mx.complex64: np.complex64,
}
# Outputs hold this before a kernel writes them: NaN in every floating-point type.
POISON = 0xFF


@dataclass(frozen=True)
class View:
    """An input as a kernel gets it.

    Attributes:
        content: The bytes from its lowest element to its highest, [n] uint8.
        offset_bytes: Where in them element 0 lies; more than 0 only if a stride is negative.
        shape: In elements.
        strides: In elements.
        item_bytes: Bytes of an element.
    """

    content: np.ndarray
    offset_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int


EMPTY = View(np.zeros(0, np.uint8), 0, (0,), (1,), 1)


def check_dtypes(dtypes: Iterable[mx.Dtype]) -> None:
    """Raise if Metal lacks one of these types."""
    for dtype in dtypes:
        if dtype not in NUMPY_TYPES:
            raise ValueError(f"{dtype} is not allowed; Metal has no such type; use mx.float32")


def view_of(x: mx.array, *, row_contiguous: bool) -> View:
    """Evaluate an array and return its bytes, as a row-contiguous copy if asked and needed."""
    try:
        mx.eval(x)
    except ValueError as error:
        raise RuntimeError(
            "an input is being traced; a simulated kernel runs when it is called: call it outside "
            "of mx.compile, or after mx.disable_compile()"
        ) from error
    bits = x.reshape(1) if x.ndim == 0 else x
    array = np.asarray(bits.view(mx.uint16) if x.dtype == mx.bfloat16 else bits)
    if row_contiguous:
        array = np.ascontiguousarray(array)
    if x.ndim == 0:
        array = array.reshape(())
    strides = tuple(stride // array.itemsize for stride in array.strides)
    if array.size == 0:
        return View(EMPTY.content, 0, array.shape, strides, array.itemsize)
    ends = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    lowest, highest = sum(min(0, end) for end in ends), sum(max(0, end) for end in ends)
    size = highest - lowest + array.itemsize
    # The bytes between the elements are the array's memory too, and a kernel may read them.
    start = array.__array_interface__["data"][0] + lowest
    content = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
    return View(content.copy(), -lowest, array.shape, strides, array.itemsize)


def initial_bytes(shape: Sequence[int], dtype: mx.Dtype, init_value: float | None) -> np.ndarray:
    """Return the bytes of an output before its kernel runs."""
    if init_value is None:
        return np.full(math.prod(shape) * dtype.size, POISON, np.uint8)
    filled = mx.full(tuple(shape), init_value, dtype=dtype)
    return view_of(filled, row_contiguous=True).content


def array_of(content: np.ndarray, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """Return an output's bytes as an array."""
    if dtype == mx.bool_:
        content = np.minimum(content, 1)  # of anything else NumPy and MLX would make two truths
    array = mx.array(content.view(NUMPY_TYPES[dtype]).reshape(tuple(shape)))
    return (
        array.view(mx.bfloat16) if dtype == mx.bfloat16 and array.ndim else as_bfloat(array, dtype)
    )


def as_bfloat(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return an array of no dimension in its own type."""
    if dtype != mx.bfloat16:
        return array
    return array.reshape(1).view(mx.bfloat16).reshape(())
