"""Kernels' signatures: their parameters, and the function that calls a kernel for one thread."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metal_sim.messages import Message, MetalError
from metal_sim.tokens import closing, closing_angle, following, token_at

# How a parameter's attribute is found in `metal_sim::ThreadPlace`.
POSITIONS = {
    "thread_position_in_grid": "position_in_grid",
    "thread_position_in_threadgroup": "position_in_threadgroup",
    "threadgroup_position_in_grid": "threadgroup_in_grid",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup": "threads_dispatched",
    "threads_per_grid": "threads_per_grid",
    "grid_size": "threads_per_grid",
    "threadgroups_per_grid": "threadgroups_per_grid",
}
THREADS = "place->{0}.x * place->{0}.y * place->{0}.z"
NUMBERS = {
    "thread_index_in_threadgroup": "place->index_in_threadgroup",
    "thread_index_in_simdgroup": "place->lane",
    "thread_index_in_quadgroup": "place->lane % 4",
    "simdgroup_index_in_threadgroup": "place->simdgroup",
    "quadgroup_index_in_threadgroup": "place->index_in_threadgroup / 4",
    "simdgroups_per_threadgroup": "place->simdgroups",
    "dispatch_simdgroups_per_threadgroup": "place->simdgroups_dispatched",
    "quadgroups_per_threadgroup": f"({THREADS.format('threads_per_threadgroup')} + 3) / 4",
    "dispatch_quadgroups_per_threadgroup": f"({THREADS.format('threads_dispatched')} + 3) / 4",
    "threads_per_simdgroup": "metal_sim::kLanes",
    "thread_execution_width": "metal_sim::kLanes",
    "grid_origin": "metal_sim::Position{0}",
}


@dataclass(frozen=True)
class KernelParameter:
    """A parameter of a kernel: its declaration and what stands in its [[attribute]]."""

    declaration: str
    attribute: str


def find_kernels(tokens: list[str]) -> dict[str, tuple[KernelParameter, ...]]:
    """Return the parameters of `kernel void f(...)` and `[[kernel]] void f(...)`."""
    kernels = {}
    for i, token in enumerate(tokens):
        if token != "kernel":
            continue
        # What stands between is the rest of this attribute, or another one.
        result = following(tokens, i)
        while token_at(tokens, result) not in ("void", ";", "{", "}", ""):
            result = following(tokens, result)
        name = following(tokens, result)
        opening = following(tokens, name)
        if token_at(tokens, result) == "void" and token_at(tokens, opening) == "(":
            kernels[tokens[name]] = parse_parameters(tokens, opening)
    return kernels


def parse_parameters(tokens: list[str], opening: int) -> tuple[KernelParameter, ...]:
    """Return the parameters in the parentheses that open at `opening`."""
    stop = closing(tokens, opening)
    parameters = []
    i = opening + 1
    while i < stop:
        end = next_parameter(tokens, i, stop)
        part = tokens[i:end]
        declaration, attribute = [], ""
        j = 0
        while j < len(part):
            if part[j] == "[" and token_at(part, j + 1) == "[":
                last = closing(part, j)
                attribute = "".join(part[j + 2 : last - 1]).strip()
                j = last + 1
            else:
                declaration.append(part[j])
                j += 1
        parameters.append(KernelParameter("".join(declaration).strip(), attribute))
        i = end + 1
    return tuple(parameters)


def next_parameter(tokens: list[str], i: int, stop: int) -> int:
    """Return where the parameter from `i` ends: at a comma outside of `<>` too."""
    while i < stop:
        if tokens[i] == ",":
            return i
        if tokens[i] == "<":
            i = max(i, closing_angle(tokens, i))
        elif tokens[i] in "([{":
            i = closing(tokens, i)
        i += 1
    return stop


def entry(call: str, parameters: Sequence[KernelParameter]) -> str:
    """Return the function that the runtime calls for every thread."""
    arguments = ", ".join(argument(parameter) for parameter in parameters)
    return (
        'extern "C" MSL_UNCHECKED void metal_sim_entry('
        f"void** buffers, const metal_sim::ThreadPlace* place) {{ {call}({arguments}); }}\n"
    )


def argument(parameter: KernelParameter) -> str:
    """Return what a kernel is given for one of its parameters."""
    attribute = parameter.attribute
    if found := re.match(r"buffer\((\d+)\)", attribute):
        kind = "Reference" if "&" in parameter.declaration else "Pointer"
        return f"metal_sim::Buffer{kind}{{buffers[{found[1]}]}}"
    if attribute in POSITIONS:
        return f"metal_sim::Position{{place->{POSITIONS[attribute]}}}"
    if attribute in NUMBERS:
        return NUMBERS[attribute]
    text = f"parameter `{parameter.declaration} [[{attribute}]]` is of no kind that is simulated"
    raise MetalError("", [Message("compile", text)])
