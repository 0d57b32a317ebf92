"""The text that mx.fast.metal_kernel compiles, byte for byte.

MLX makes a kernel's signature itself: from names, dtypes and sizes of the inputs, and from what
the source mentions.  Two traps follow, and both are kept here.  Names are looked for as substrings:
`mask_shape` mentions `k_shape` too, so that an input called `k` gets a buffer for its shape.  And
an input of fewer than eight elements lies in another address space than a longer one, so that its
kernel is another kernel.

Source: mlx/backend/common/metal_kernel.cpp, write_signature and metal_kernel; type names from
get_type_string in mlx/backend/common/compiled.cpp.  The tests compare with what MLX itself prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

# Inputs with fewer elements are passed in the address space `constant`.
MAX_CONSTANT_ARRAY_SIZE = 8

TYPE_NAMES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.float64: "double",
    mx.complex64: "complex64_t",
}

# In MLX's order, which is the order of the parameters.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}

TemplateArgument = tuple[str, bool | int | mx.Dtype]


@dataclass(frozen=True)
class InputKind:
    """What the text depends on of an input."""

    dtype: mx.Dtype
    ndim: int
    size: int

    @property
    def is_constant(self) -> bool:
        """Whether it is passed in the address space `constant`."""
        return self.size < MAX_CONSTANT_ARRAY_SIZE


@dataclass(frozen=True)
class Parameter:
    """A buffer of the signature: an input or output, or an input's shape, strides, or ndim."""

    name: str
    of: str  # "input", "output", "shape", "strides", "ndim"
    index: int  # of the input or output that it belongs to


@dataclass(frozen=True)
class Generated:
    """A kernel's whole text, and what a caller needs to run it."""

    text: str
    name: str  # the function
    call: str  # the function with its template arguments
    parameters: tuple[Parameter, ...]  # in the order of their [[buffer(i)]]


def generate(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str,
    inputs: Sequence[InputKind],
    output_dtypes: Sequence[mx.Dtype],
    template: Sequence[TemplateArgument],
    atomic_outputs: bool,
) -> Generated:
    """Return the text of a kernel for these inputs, outputs, and template arguments."""
    arguments = [template_value(value) for _, value in template]
    function = function_name(name, arguments, inputs, output_dtypes)
    parameters = list_parameters(input_names, output_names, source, inputs)
    attributes = [f"  {kind} {a} [[{a}]]" for a, kind in ATTRIBUTES.items() if a in source]

    text = header
    if template:
        declared = ", ".join(f"{template_kind(value)} {name}" for name, value in template)
        text += f"template <{declared}>\n"
    text += f"[[kernel]] void {function}(\n"
    text += signature(parameters, attributes, inputs, output_dtypes, atomic_outputs)
    text += source + "\n}\n"

    call = function
    if template:
        call = f"{function}<{', '.join(arguments)}>"
        text += f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({call}) {call};\n'
    return Generated(text, function, call, tuple(parameters))


def function_name(
    name: str,
    arguments: Sequence[str],
    inputs: Sequence[InputKind],
    output_dtypes: Sequence[mx.Dtype],
) -> str:
    """Return the function's name, which is the key of MLX's cache of compiled kernels."""
    function = f"custom_kernel_{name}"
    if arguments:
        # MLX replaces `<`, `>`, `, ` and `-` of `<-4, float>` by `_`, and drops the last one.
        function += "__" + "_".join(arguments).replace("-", "_")
    for kind in inputs:
        suffix = "s" if kind.ndim == 0 else "c" if kind.is_constant else ""
        function += f"_{TYPE_NAMES[kind.dtype]}{suffix}"
    return function + "".join(f"_{TYPE_NAMES[dtype]}" for dtype in output_dtypes)


def list_parameters(
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    inputs: Sequence[InputKind],
) -> list[Parameter]:
    """Return the buffers of a kernel in order, with those that its source only mentions."""
    parameters = []
    for index, (name, kind) in enumerate(zip(input_names, inputs, strict=True)):
        parameters.append(Parameter(name, "input", index))
        for of in ("shape", "strides", "ndim"):
            if kind.ndim > 0 and f"{name}_{of}" in source:
                parameters.append(Parameter(f"{name}_{of}", of, index))
    parameters += [Parameter(name, "output", index) for index, name in enumerate(output_names)]
    return parameters


def signature(
    parameters: Sequence[Parameter],
    attributes: Sequence[str],
    inputs: Sequence[InputKind],
    output_dtypes: Sequence[mx.Dtype],
    atomic_outputs: bool,
) -> str:
    """Return the parameters as MLX writes them, up to the brace that opens the body."""
    lines = []
    for buffer, parameter in enumerate(parameters):
        declaration = declare(parameter, inputs, output_dtypes, atomic_outputs)
        lines.append(f"  {declaration} {parameter.name} [[buffer({buffer})]]")

    text = "".join(f"{line},\n" for line in lines[: -len(output_dtypes)])
    # MLX compares the index of a buffer with the number of inputs and outputs, which is too small
    # when there are shapes among them: then a kernel with several outputs and no attributes has
    # its signature closed too early, and does not compile.  Here it does not compile either.
    last = len(inputs) + len(output_dtypes) - 1
    for buffer in range(len(lines) - len(output_dtypes), len(lines)):
        text += lines[buffer] + (",\n" if buffer < last or attributes else ") {\n")
    if attributes:
        text += ",\n".join(attributes) + ") {\n"
    return text


def declare(
    parameter: Parameter,
    inputs: Sequence[InputKind],
    output_dtypes: Sequence[mx.Dtype],
    atomic_outputs: bool,
) -> str:
    """Return the type of a parameter, with its address space."""
    if parameter.of == "input":
        kind = inputs[parameter.index]
        space = "constant" if kind.is_constant else "device"
        return f"const {space} {TYPE_NAMES[kind.dtype]}{'&' if kind.ndim == 0 else '*'}"
    if parameter.of == "output":
        name = TYPE_NAMES[output_dtypes[parameter.index]]
        return f"device atomic<{name}>*" if atomic_outputs else f"device {name}*"
    return {
        "shape": "const constant int*",
        "strides": "const constant int64_t*",
        "ndim": "const constant int&",
    }[parameter.of]


def template_kind(value: bool | int | mx.Dtype) -> str:
    """Return how a template argument is declared."""
    if isinstance(value, bool):  # before int, of which it is one
        return "bool"
    return "int" if isinstance(value, int) else "typename"


def template_value(value: bool | int | mx.Dtype) -> str:
    """Return a template argument as MLX writes it."""
    if isinstance(value, mx.Dtype):
        return TYPE_NAMES[value]
    if isinstance(value, int) and -(2**31) <= value < 2**31:
        return str(int(value))
    raise ValueError(
        f"template argument {value!r} is not allowed; bool, int of 32 bits, or Dtype are: "
        "put floats into an input or into the source"
    )
