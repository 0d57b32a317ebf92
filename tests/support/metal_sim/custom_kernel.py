"""CustomKernel: what mx.fast.metal_kernel returns, with MLX's checks of its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from metal_sim import arrays
from metal_sim.compile import Source
from metal_sim.generate import InputKind, Parameter, generate
from metal_sim.launch import Buffer, Dims

if TYPE_CHECKING:
    from metal_sim.simulator import Simulator

MATH_MODES = ("safe", "relaxed", "fast")


@dataclass(frozen=True)
class CustomKernel:
    """A kernel of mx.fast.metal_kernel: it is compiled, and runs, when it is called."""

    simulator: Simulator
    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str
    ensure_row_contiguous: bool
    atomic_outputs: bool
    math_mode: str

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array | bool | int | float],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Dims,
        threadgroup: Dims,
        template: Sequence[tuple[str, bool | int | mx.Dtype]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Run the kernel now, inputs evaluated first, and return its outputs."""
        check_number("inputs", inputs, self.input_names)
        check_number("output_shapes", output_shapes, self.output_names)
        check_number("output_dtypes", output_dtypes, self.output_names)
        if stream is not None and getattr(stream, "device", stream) == mx.Device(mx.cpu):
            raise ValueError("[metal_kernel] Only supports the GPU.")
        given = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
        arrays.check_dtypes([*(x.dtype for x in given), *output_dtypes])
        generated = generate(
            self.name,
            self.input_names,
            self.output_names,
            self.source,
            self.header,
            [InputKind(x.dtype, x.ndim, x.size) for x in given],
            output_dtypes,
            template or (),
            self.atomic_outputs,
        )
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{generated.text}\n```")
        views = [arrays.view_of(x, row_contiguous=self.ensure_row_contiguous) for x in given]

        def make_buffers() -> list[Buffer]:
            return [
                make_output(parameter.name, output_shapes[i], output_dtypes[i], init_value)
                if parameter.of == "output"
                else make_input(parameter, views[i])
                for parameter in generated.parameters
                for i in (parameter.index,)
            ]

        buffers = self.simulator.launch(
            Source(self.name, generated.text, generated.name, generated.call, self.math_mode),
            make_buffers,
            (grid[0], grid[1], grid[2]),
            (threadgroup[0], threadgroup[1], threadgroup[2]),
            template=tuple(template or ()),
            # Atomic sums of floats are rounded in the order in which they happen.
            is_order_free=not self.atomic_outputs,
        )
        outputs = [buffer for buffer in buffers if buffer.is_output]
        return [
            arrays.array_of(buffer.content, shape, dtype)
            for buffer, shape, dtype in zip(outputs, output_shapes, output_dtypes, strict=True)
        ]


def read_math_mode(options: Mapping[str, str] | None) -> str:
    """Return the math mode of metal_kernel's compile_options, checked as MLX does."""
    if options is None:
        return "safe"
    if not isinstance(options, Mapping):
        raise ValueError("[metal_kernel] Expected `compile_options` to be a dict.")
    for option in options:
        if option != "math_mode":
            raise ValueError(f"[metal_kernel] Unknown compile option `{option}`.")
    mode = options.get("math_mode", "safe")
    if mode not in MATH_MODES:
        raise ValueError("[metal_kernel] Expected math_mode to be 'safe', 'relaxed', or 'fast'.")
    return mode


def check_number(what: str, given: Sequence[Any], names: Sequence[str]) -> None:
    """Raise if there are not as many as names."""
    if len(given) != len(names):
        raise ValueError(
            f"[metal_kernel] Expected `{what}` to have size {len(names)} "
            f"but got size {len(given)}.\n"
        )


def make_output(
    name: str, shape: Sequence[int], dtype: mx.Dtype, init_value: float | None
) -> Buffer:
    """Return the buffer of an output."""
    content = arrays.initial_bytes(shape, dtype, init_value)
    return Buffer(name, content, dtype.size, 0, True, init_value is not None)


def make_input(parameter: Parameter, view: arrays.View) -> Buffer:
    """Return the buffer of an input, or of its shape, strides, or number of dimensions."""
    if parameter.of == "input":
        return Buffer(parameter.name, view.content, view.item_bytes, view.offset_bytes)
    values = {
        "shape": np.array(view.shape, np.int32),
        "strides": np.array(view.strides, np.int64),
        "ndim": np.array([len(view.shape)], np.int32),
    }[parameter.of]
    return Buffer(parameter.name, values.view(np.uint8), values.itemsize)
