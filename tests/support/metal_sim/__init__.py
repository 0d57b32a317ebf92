"""Metal kernels on the CPU, for tests: see README.md in this folder."""

from metal_sim.launch import Bytes, Counts
from metal_sim.library_kernel import LibraryKernel, Output
from metal_sim.messages import Message, MetalError
from metal_sim.simulator import Launch, Simulator
from metal_sim.toolchain import missing

__all__ = [
    "Bytes",
    "Counts",
    "Launch",
    "LibraryKernel",
    "Message",
    "MetalError",
    "Output",
    "Simulator",
    "default_simulator",
    "metal_kernel",
    "missing",
]

default_simulator = Simulator()
metal_kernel = default_simulator.metal_kernel
