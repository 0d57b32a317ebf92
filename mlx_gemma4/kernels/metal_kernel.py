"""MetalKernel: a source of `kernels/metal` as a function of arrays."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_gemma4.kernels.source import read_source

# MLX passes an input of fewer elements in another address space, which is another kernel.
_MIN_PARAMS = 8

Dims = tuple[int, int, int]


class MetalKernel:
    """A kernel that is compiled, once a template, when it first runs.

    Args:
        stem: Of its source in `kernels/metal`.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
        ensure_row_contiguous: Copy inputs that are not; False if it minds their strides itself.
        declarations: Metal text before the source's: of names that it has and this kernel has not,
            such as an output that only some calls want.  Kernels of one source that differ in it
            must differ in their templates, by which MLX knows them.
    """

    def __init__(
        self,
        stem: str,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        ensure_row_contiguous: bool = True,
        declarations: str = "",
    ) -> None:
        self.stem = stem
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._ensure_row_contiguous = ensure_row_contiguous
        self._declarations = declarations
        self._factory: Any = None
        self._kernel: Any = None

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array],
        template: Sequence[tuple[str, mx.Dtype | int | bool]] = (),
        grid: Dims,
        threadgroup: Dims,
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        """Return the outputs, lazily; an error of the Metal compiler comes when one is evaluated.

        Args:
            inputs: In the order of their names.
            template: Values of the source's template parameters; each combination is compiled
                anew, so never a length, a batch, or a position.
            grid: Threads in each dimension; multiples of `threadgroup`, since MLX would shrink it.
            threadgroup: Threads of a threadgroup in each dimension.
            output_shapes: In the order of their names.
            output_dtypes: In the order of their names.
        """
        assert all(n % group == 0 for n, group in zip(grid, threadgroup, strict=True)), self.stem
        return self._built()(
            inputs=list(inputs),
            template=list(template),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=[tuple(shape) for shape in output_shapes],
            output_dtypes=list(output_dtypes),
        )

    def _built(self) -> Any:
        """Return MLX's kernel, made anew if a simulator has replaced what makes it."""
        if self._factory is not mx.fast.metal_kernel:
            source = read_source(self.stem)
            self._kernel = mx.fast.metal_kernel(
                name=self.stem,
                input_names=list(self._inputs),
                output_names=list(self._outputs),
                source=self._declarations + source.body,
                header=source.header,
                ensure_row_contiguous=self._ensure_row_contiguous,
            )
            self._factory = mx.fast.metal_kernel
        return self._kernel


@lru_cache(maxsize=256, typed=True)
def pack_params(*values: int | float) -> mx.array:
    """Return scalars for a kernel in one int32 array of at least 8 elements.

    A float is stored by the bits of its float32; a kernel reads it with `as_type<float>`.  The
    array is kept, so that the same scalars cost nothing in the next layer and step.
    """
    words = [
        struct.unpack("<i", struct.pack("<f", value))[0] if isinstance(value, float) else value
        for value in values
    ]
    return mx.array(words + [0] * (_MIN_PARAMS - len(words)), mx.int32)
