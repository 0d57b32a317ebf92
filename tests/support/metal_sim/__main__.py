"""`python -m metal_sim KERNEL`: a kernel's check cases through the simulator, as a table.

Every case is run in mode "check", compared with the kernel's definition, and run again in mode
"count".  Findings of the checks are printed as they are; then the exit status is 1.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from metal_sim.launch import Counts
from metal_sim.messages import MetalError
from metal_sim.simulator import Simulator
from metal_sim.toolchain import missing

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
HEADINGS = (
    *("dtype", "case", "difference", "read", "by lane", "written"),
    *("threadgroup", "barriers", "simd ops", "matrix flops"),
)


def main(arguments: Sequence[str] | None = None, kernels: Mapping[str, Any] | None = None) -> int:
    """Print a table about a kernel and return the exit status.

    Args:
        arguments: Of the command line; sys.argv's by default.
        kernels: Kernels by name; the product's registry by default.
    """
    if kernels is None:
        from mlx_gemma4.kernels.registry import KERNELS as kernels  # noqa: N811
    parser = argparse.ArgumentParser("metal_sim", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kernel", choices=sorted(kernels))
    parser.add_argument("--seed", type=int, default=0, help="of the order in which threads run")
    options = parser.parse_args(arguments)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1

    simulator = Simulator(seed=options.seed)
    previous = mx.fast.metal_kernel
    mx.fast.metal_kernel = simulator.metal_kernel
    mx.disable_compile()
    try:
        rows, findings = run_cases(simulator, kernels[options.kernel])
    finally:
        mx.fast.metal_kernel = previous
        mx.enable_compile()
    print_table([HEADINGS, *rows])
    print("differences are the largest from the definition in plain MLX; bytes are distinct ones")
    for finding in findings:
        print(f"\n{finding}")
    return 1 if findings else 0


def run_cases(simulator: Simulator, kernel: Any) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return a row for every case of a kernel in every dtype, and what the checks found."""
    rows, findings = [], []
    for dtype in DTYPES:
        name = str(dtype).removeprefix("mlx.core.")
        for case in kernel.check_cases(dtype):
            simulator.clear()
            try:
                simulator.mode = "check"
                outputs = kernel.launch(*case.arguments)
                difference = largest_difference(outputs, kernel.define(*case.arguments))
                simulator.mode = "count"
                simulator.clear()
                kernel.launch(*case.arguments)
            except MetalError as error:
                rows.append((name, case.label, "failed"))
                findings.append(f"{name}, {case.label}: {error}")
                continue
            counts = [launch.counts for launch in simulator.launches if launch.counts]
            rows.append((name, case.label, f"{difference:.2g}", *summary(counts)))
    return rows, findings


def largest_difference(outputs: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    """Return the largest absolute difference of two lists of arrays."""
    differences = [0.0]
    for output, wanted in zip(outputs, expected, strict=True):
        a, b = (np.array(x.astype(mx.float32)) for x in (output, wanted))
        differences.append(float(np.max(np.abs(a - b), where=a != b, initial=0.0)))
    return max(differences)


def summary(counts: Sequence[Counts]) -> tuple[str, ...]:
    """Return the numbers of a row, summed over the launches of a case."""
    read = [bytes_ for count in counts for bytes_ in count.read.values()]
    written = [bytes_ for count in counts for bytes_ in count.written.values()]
    numbers = (
        sum(bytes_.distinct for bytes_ in read),
        sum(bytes_.by_lane for bytes_ in read),
        sum(bytes_.distinct for bytes_ in written),
        sum(c.threadgroup_bytes_read + c.threadgroup_bytes_written for c in counts),
        sum(c.barriers for c in counts),
        sum(c.simd_operations for c in counts),
        sum(c.matrix_flops for c in counts),
    )
    return tuple(f"{number:,}" for number in numbers)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; numbers stand to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
