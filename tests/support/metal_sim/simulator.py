"""Simulator: what replaces mx.fast.metal_kernel, and remembers every launch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from metal_sim.compile import Source, build
from metal_sim.custom_kernel import CustomKernel, read_math_mode
from metal_sim.launch import Buffer, Counts, Dims, launch
from metal_sim.messages import Message, MetalError

MAX_THREADS = 1024
# More threads than this are refused by some chips, depending on the registers that a kernel needs.
SAFE_THREADS = 512


@dataclass(frozen=True)
class Launch:
    """A launch that has been simulated.

    Attributes:
        name: The kernel's, as it was given to metal_kernel.
        source: The whole text that was compiled.
        template: The template arguments.
        grid: Threads in each dimension.
        threadgroup: Threads of a threadgroup, as given: larger than the grid, it is clamped.
        mode: "run", "check" or "count".
        counts: In mode "count", otherwise None.
        messages: What the checks found; errors among them raise MetalError as well.
    """

    name: str
    source: str
    template: tuple[tuple[str, Any], ...]
    grid: Dims
    threadgroup: Dims
    mode: str
    counts: Counts | None
    messages: tuple[Message, ...]


class Simulator:
    """Runs Metal kernels on the CPU, under the interface of mx.fast.metal_kernel.

    Attributes:
        mode: "run" computes; "check" computes and raises MetalError for what is wrong; "count"
            computes and counts bytes and operations.
        seed: Of the order in which threads run; 0 is the natural order.
        orders: How often mode "check" runs a kernel: with this seed, the next one, and so on.
        strict: Whether mode "check" also checks types with address spaces apart.  It refuses
            classes that are copied out of device memory, which Metal allows.
        launches: What has been launched, in order.
    """

    def __init__(self, mode: str = "check", seed: int = 0, orders: int = 3, strict: bool = True):
        self.mode = mode
        self.seed = seed
        self.orders = orders
        self.strict = strict
        self.launches: list[Launch] = []

    def clear(self) -> None:
        """Forget all launches."""
        self.launches.clear()

    def metal_kernel(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: Mapping[str, str] | None = None,
    ) -> Callable[..., list[mx.array]]:
        """Return a kernel, as mx.fast.metal_kernel does; the arguments are the same."""
        if not output_names:
            raise ValueError("[metal_kernel] Must specify at least one output.")
        return CustomKernel(
            self,
            name,
            tuple(input_names),
            tuple(output_names),
            source,
            header,
            ensure_row_contiguous,
            atomic_outputs,
            read_math_mode(compile_options),
        )

    def launch(
        self,
        source: Source,
        make_buffers: Callable[[], list[Buffer]],
        grid: Dims,
        threadgroup: Dims,
        *,
        template: tuple[tuple[str, Any], ...] = (),
        is_order_free: bool = True,
    ) -> list[Buffer]:
        """Compile and run a kernel in as many orders as the mode asks for.

        Args:
            source: What to run.
            make_buffers: Returns its arguments, in the order of [[buffer(i)]], fresh in each call.
            grid: Threads in each dimension.
            threadgroup: Threads of a threadgroup in each dimension.
            template: To be remembered.
            is_order_free: Whether the outputs must be the same in every order.

        Returns:
            The arguments after the first run.

        Raises:
            MetalError: The kernel does not compile, or a check found something.
        """
        messages = check_dims(grid, threadgroup)
        counts = None
        first: list[Buffer] = []
        try:
            raise_errors(source.name, messages)
            path = build(source, self.mode, is_strict=self.strict and self.mode == "check")
            for order in range(self.orders if self.mode == "check" else 1):
                seed = self.seed + order
                buffers = make_buffers()
                clamped = clamp_dims(threadgroup, grid)
                outcome = launch(path, source.text, buffers, grid, clamped, self.mode, seed)
                counts = outcome.counts
                messages += outcome.messages
                first = first or buffers
                if is_order_free and not outcome.messages:
                    messages += compare_orders(first, buffers, seed)
                raise_errors(source.name, messages)
        except MetalError as error:
            messages = list(error.messages)
            raise MetalError(source.name, messages) from None
        finally:
            self.launches.append(
                Launch(
                    source.name,
                    source.text,
                    template,
                    grid,
                    threadgroup,
                    self.mode,
                    counts,
                    tuple(messages),
                )
            )
        return first


def check_dims(grid: Dims, threadgroup: Dims) -> list[Message]:
    """Return what is wrong with a grid and its threadgroups."""
    if len(grid) != 3 or len(threadgroup) != 3:
        raise TypeError(f"grid {grid} and threadgroup {threadgroup} must have three dimensions")
    if min(*grid, *threadgroup) < 1:
        text = f"grid {grid} and threadgroup {threadgroup} must be at least 1 in each dimension"
        return [Message("dimensions", text)]
    # MLX refuses the threadgroup that it is given, before it clamps it.
    threads = math.prod(threadgroup)
    if threads > MAX_THREADS:
        text = f"{threads} threads in a threadgroup; {MAX_THREADS} are allowed"
        return [Message("threads", text)]
    if threads > SAFE_THREADS:
        text = (
            f"{threads} threads in a threadgroup; more than {SAFE_THREADS} are refused by some "
            "chips if the kernel needs many registers"
        )
        return [Message("threads", text, is_error=False)]
    return []


def clamp_dims(threadgroup: Dims, grid: Dims) -> Dims:
    """Return a threadgroup that is nowhere larger than the grid, as MLX dispatches it."""
    x, y, z = (min(t, g) for t, g in zip(threadgroup, grid, strict=True))
    return x, y, z


def raise_errors(name: str, messages: Sequence[Message]) -> None:
    """Raise if there is an error among the messages."""
    if any(message.is_error for message in messages):
        raise MetalError(name, messages)


def compare_orders(first: Sequence[Buffer], later: Sequence[Buffer], seed: int) -> list[Message]:
    """Return a message for every output that depends on the order in which threads ran."""
    messages = []
    for a, b in zip(first, later, strict=True):
        if a.is_output and not np.array_equal(a.content, b.content):
            index = int(np.flatnonzero(a.content != b.content)[0]) // a.item_bytes
            text = f"output {a.name}[{index}] depends on the order in which threads run"
            messages.append(Message("order", f"{text} (seed {seed})"))
    return messages
