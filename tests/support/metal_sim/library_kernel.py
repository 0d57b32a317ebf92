"""LibraryKernel: a kernel of any Metal text, called by the indices of its buffers.

Such are the kernels that MLX itself ships: they include MLX's headers, have function constants, and
are not made by mx.fast.metal_kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from metal_sim import arrays
from metal_sim.compile import Source
from metal_sim.custom_kernel import make_output
from metal_sim.launch import Buffer, Dims
from metal_sim.simulator import Simulator


@dataclass(frozen=True)
class Output:
    """An output of a library's kernel."""

    shape: Sequence[int]
    dtype: mx.Dtype


@dataclass(frozen=True)
class LibraryKernel:
    """A kernel function of a Metal text.

    Attributes:
        simulator: Runs it.
        text: May include MLX's headers by the paths that they have in its wheel.
        function: The kernel function's name.
        template: Template arguments, as text.
        function_constants: Values of the text's function constants by index; others are 0.
    """

    simulator: Simulator
    text: str
    function: str
    template: Sequence[str] = ()
    function_constants: Mapping[int, int | bool] = field(default_factory=dict)

    def __call__(
        self, buffers: Mapping[int, mx.array | Output], grid: Dims, threadgroup: Dims
    ) -> list[mx.array]:
        """Run the kernel and return its outputs, in the order of their indices.

        Args:
            buffers: By the index in [[buffer(i)]]; an index that is missing must not be read.
            grid: Threads in each dimension.
            threadgroup: Threads of a threadgroup in each dimension.
        """
        views = {
            index: arrays.view_of(argument, row_contiguous=True)
            for index, argument in buffers.items()
            if isinstance(argument, mx.array)
        }

        def make_buffers() -> list[Buffer]:
            return [self._buffer(index, buffers, views) for index in range(max(buffers) + 1)]

        call = self.function + (f"<{', '.join(self.template)}>" if self.template else "")
        source = Source(
            self.function,
            self.text,
            self.function,
            call,
            with_utils=False,
            function_constants=self.function_constants,
        )
        after = self.simulator.launch(source, make_buffers, grid, threadgroup)
        return [
            arrays.array_of(after[index].content, output.shape, output.dtype)
            for index, output in sorted(buffers.items())
            if isinstance(output, Output)
        ]

    def _buffer(
        self,
        index: int,
        buffers: Mapping[int, mx.array | Output],
        views: Mapping[int, arrays.View],
    ) -> Buffer:
        name = f"buffer {index}"
        argument = buffers.get(index)
        if isinstance(argument, Output):
            return make_output(name, argument.shape, argument.dtype, None)
        view = views.get(index, arrays.EMPTY)
        return Buffer(name, view.content, view.item_bytes)
