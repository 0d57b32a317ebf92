"""How many kernels MLX's GPU path launches for each operation of a traced step.

Every operation has a row in RULES, with the place in MLX that it follows; one without a row is an
error, never a silent 0.  Views cost nothing, unless an array does not lie in memory as the next
operation wants it and is copied: so strides are followed through the graph as MLX does it.

Rows were read in MLX's sources, and for attention and quantized products in what the 0.32.4 library
for macOS decides, since its gates differ from the published sources.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch_layout import Layout


@dataclass(frozen=True)
class Operation:
    """An operation of a trace, as rules see it.

    Attributes:
        name: Of the primitive, or of the recorded call.
        inputs: Layouts.
        shapes: Of the outputs.
        arguments: Of the primitive, a list; of a call, a dictionary.
        is_only_reader: For each input, whether no other operation reads it.
        architecture: Last letter of the GPU's name: "g" base, "s" Pro and Max, "d" Ultra.
    """

    name: str
    inputs: tuple[Layout, ...]
    shapes: tuple[tuple[int, ...], ...]
    arguments: Any
    is_only_reader: tuple[bool, ...]
    architecture: str


Outcome = tuple[int, list[Layout]]  # launches, and the layouts of the outputs


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        launches: In words.
        source: Where MLX does it.
        apply: Counts.
    """

    launches: str
    source: str
    apply: Callable[[Operation], Outcome]


class UnknownOperationError(Exception):
    """An operation that the table does not cover."""


def _fresh(op: Operation) -> list[Layout]:
    return [Layout.rows(shape) for shape in op.shapes]


def _one(op: Operation) -> Outcome:
    return 1 if math.prod(op.shapes[0]) else 0, _fresh(op)


def _elementwise(op: Operation) -> Outcome:
    """One kernel; the output keeps the order of axes that all inputs share."""
    whole = [layout for layout in op.inputs if layout.shape == op.shapes[0]]
    if whole and all(a.is_contiguous and a.strides == whole[0].strides for a in whole):
        return 1, [Layout(op.shapes[0], whole[0].strides)]
    return _one(op)


def _reshape(op: Operation) -> Outcome:
    view = op.inputs[0].reshaped(op.shapes[0])
    return (1, _fresh(op)) if view is None else (0, [view])


def _transpose(op: Operation) -> Outcome:
    layout, axes = op.inputs[0], op.arguments[0]
    return 0, [Layout(op.shapes[0], tuple(layout.strides[axis] for axis in axes))]


def _slice(op: Operation) -> Outcome:
    strides = zip(op.inputs[0].strides, op.arguments[2], strict=True)
    return 0, [Layout(op.shapes[0], tuple(stride * step for stride, step in strides))]


def _split(op: Operation) -> Outcome:
    return 0, [Layout(shape, op.inputs[0].strides) for shape in op.shapes]


def _broadcast(op: Operation) -> Outcome:
    layout, shape = op.inputs[0], op.shapes[0]
    missing = len(shape) - len(layout.shape)
    strides = [0] * missing + [
        s if n == wide else 0
        for n, s, wide in zip(layout.shape, layout.strides, shape[missing:], strict=True)
    ]
    return 0, [Layout(shape, tuple(strides))]


def _same(op: Operation) -> Outcome:
    return 0, [op.inputs[0]]


def _axes_of_one(op: Operation) -> Outcome:
    """Drop or add axes of one element, whose strides do not matter."""
    kept = iter([s for n, s in zip(op.inputs[0].shape, op.inputs[0].strides, strict=True) if n > 1])
    return 0, [Layout(op.shapes[0], tuple(next(kept) if n > 1 else 1 for n in op.shapes[0]))]


def _concatenate(op: Operation) -> Outcome:
    return sum(math.prod(layout.shape) > 0 for layout in op.inputs), _fresh(op)


def _slice_update(op: Operation) -> Outcome:
    """One copy of the new values; the old ones are copied too if somebody else still reads them."""
    is_donated = op.is_only_reader[0] and op.inputs[0].is_contiguous
    return 1 if is_donated else 2, _fresh(op)


def _last_axis(op: Operation) -> Outcome:
    """One kernel over rows; rows that are not contiguous are copied first."""
    layout = op.inputs[0]
    is_ready = layout.is_contiguous and layout.strides[-1] == 1
    return 1 if is_ready else 2, _fresh(op)


def _reduce(op: Operation) -> Outcome:
    layout = op.inputs[0]
    if not layout.is_row_contiguous or op.arguments[1] != [len(layout.shape) - 1]:
        raise UnknownOperationError(f"a reduction of {layout} over axes {op.arguments[1]}")
    return 1, _fresh(op)


def _matmul(op: Operation) -> Outcome:
    a, b = op.inputs[:2]
    if math.prod(a.shape[:-1]) > 1 and b.shape[-1] > 1:
        raise UnknownOperationError(f"a product of {a.shape} and {b.shape}, not of one vector")
    return 1, _fresh(op)


def _norm(op: Operation) -> Outcome:
    x = op.inputs[0]
    is_ready = x.is_contiguous and x.strides[-1] == 1
    if is_ready and len(x.shape) > 1:
        is_ready = x.strides[-2] in (0, x.shape[-1]) or x.shape[-2] == 1
    return (1, [Layout(x.shape, x.strides)]) if is_ready else (2, _fresh(op))


def _rope(op: Operation) -> Outcome:
    """One kernel; dimensions that do not rotate are copied unless the input can be overwritten."""
    x = op.inputs[0]
    if op.arguments["dims"] < x.shape[-1]:
        return 1 if x.is_row_contiguous and op.is_only_reader[0] else 2, _fresh(op)
    N, T, D = (x.shape[1], x.shape[2], x.shape[3]) if len(x.shape) == 4 else (1, 1, 1)
    is_transposed = len(x.shape) == 4 and x.strides[:3] == (T * N * D, D, N * D)
    is_ready = x.is_row_contiguous or len(x.shape) == 3 or is_transposed
    return 1 if is_ready else 2, _fresh(op)


def _attention(op: Operation) -> Outcome:
    q, k, v = op.inputs[:3]
    _, H, L, D = q.shape
    K, S = k.shape[1:3]
    if L > 8:
        raise UnknownOperationError(f"attention of {L} queries, which is not decoding")
    if D not in (64, 96, 128, 256, 512) or v.shape[-1] != D or L * (H // K) > 32:
        return _composite(op)
    if D == 512 and (L > 1 or H // K != 8 or op.arguments["mask"] == "array" or S < 1024):
        return _composite(op)
    copies = not _is_query_ready(q)
    for rows in (k, v):
        is_whole = rows.shape[0] == 1 or K == 1 or rows.strides[0] == rows.strides[1] * K
        copies += rows.strides[-1] != 1 or not is_whole
    is_split = (op.architecture in "sd" and S >= 1024) or (K < H and S >= 4096)
    return 1 + is_split + copies, _fresh(op)


def _is_query_ready(q: Layout) -> bool:
    if q.is_row_contiguous:
        return True
    if 1 not in q.shape[:2]:
        return False
    axis = 1 if q.shape[0] == 1 else 0
    tight = q.shape[3], q.shape[3] * q.shape[axis]
    return q.strides[3] == 1 and (q.strides[axis], q.strides[2]) == tight


def _composite(op: Operation) -> Outcome:
    """Scale, product, mask, softmax, product; the query heads of a key head are one product's rows.

    A product with few tiles and a long sum is cut along the sum, which takes a second kernel.
    """
    q, k, v = op.inputs[:3]
    rows = q.shape[1] * q.shape[2] // k.shape[1]
    S = k.shape[2]
    products = _gemm(rows, S, q.shape[-1]) + _gemm(rows, v.shape[-1], S)
    return 1 + products + (op.arguments["mask"] is not None) + 1, _fresh(op)


def _gemm(M: int, N: int, K: int) -> int:
    tiles = -(-M // 16) * -(-N // 16)
    return 2 if tiles <= 32 and K // 16 >= 8 else 1


def _quantized_matmul(op: Operation) -> Outcome:
    x = op.inputs[0]
    rows = math.prod(x.shape[:-1])
    if rows >= 6 or not op.arguments["transpose"]:  # no chip changes its kernel below six rows
        raise UnknownOperationError(f"a quantized product of {rows} rows, which is not decoding")
    return 1 if x.is_row_contiguous else 2, _fresh(op)


def _metal_kernel(op: Operation) -> Outcome:
    strided = sum(not layout.is_row_contiguous for layout in op.inputs)
    return 1 + op.arguments["fills"] + strided * op.arguments["copies"], _fresh(op)


def _compile(op: Operation) -> Outcome:
    """Chains that MLX has fused, and what is left; arrays in between are taken to lie in rows."""
    total = 0
    for name, count in op.arguments["kernels"].items():
        if name.startswith("Compiled") or name in _ELEMENTWISE:
            total += count
        elif name not in _ALWAYS_VIEWS | {"Depends"}:  # Depends: the calls below
            raise UnknownOperationError(f"{name} in a compiled function")
    for call in op.arguments["calls"]:
        inputs, shapes = call["shapes"]
        inner = Operation(
            call["name"],
            tuple(Layout.rows(shape) for shape in inputs),
            tuple(map(tuple, shapes)),
            call["arguments"],
            (True,) * len(inputs),
            op.architecture,
        )
        total += RULES[inner.name].apply(inner)[0]
    return total, _fresh(op)


# fmt: off
_ELEMENTWISE = frozenset({
    "Abs", "Add", "AsType", "BitwiseBinary", "Ceil", "Cos", "Divide", "Equal", "Erf", "Exp",
    "Expm1", "Floor", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "Log1p",
    "LogAddExp", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply",
    "Negative", "NotEqual", "Power", "Remainder", "Round", "Rsqrt", "Select", "Sigmoid", "Sign",
    "Sin", "Sqrt", "Square", "Subtract", "Tanh",
})
# fmt: on
_ALWAYS_VIEWS = frozenset({"Broadcast", "BroadcastAxes", "ExpandDims", "Squeeze"})

_GPU = "mlx/backend/gpu/primitives.cpp"
_METAL = "mlx/backend/metal"
RULES: dict[str, Rule] = {
    **{
        name: Rule("1", f"{_METAL}/unary.cpp, binary.cpp, ternary.cpp, copy.cpp", _elementwise)
        for name in sorted(_ELEMENTWISE)
    },
    "Broadcast": Rule("0, a view", f"{_GPU}, Broadcast", _broadcast),
    "BroadcastAxes": Rule("0, a view", f"{_GPU}, BroadcastAxes", _broadcast),
    "ExpandDims": Rule("0, a view", f"{_GPU}, ExpandDims", _axes_of_one),
    "Squeeze": Rule("0, a view", f"{_GPU}, Squeeze", _axes_of_one),
    "Transpose": Rule("0, a view", f"{_GPU}, Transpose", _transpose),
    "Slice": Rule("0, a view", "mlx/backend/gpu/slicing.cpp, slice_gpu", _slice),
    "Split": Rule("0, views", f"{_GPU}, Split", _split),
    "Copy": Rule("0, shares the buffer", f"{_GPU}, Copy", _same),
    "StopGradient": Rule("0, shares the buffer", f"{_GPU}, StopGradient", _same),
    "Reshape": Rule("0 if a view can have the shape, else 1", f"{_GPU}, reshape_gpu", _reshape),
    "Flatten": Rule("as Reshape", f"{_GPU}, reshape_gpu", _reshape),
    "Unflatten": Rule("as Reshape", f"{_GPU}, reshape_gpu", _reshape),
    "Full": Rule("1", f"{_GPU}, Full", _one),
    "Arange": Rule("1", f"{_METAL}/primitives.cpp, Arange", _one),
    "Concatenate": Rule(
        "1 an input that is not empty", f"{_METAL}/slicing.cpp, concatenate_gpu", _concatenate
    ),
    "SliceUpdate": Rule(
        "1 if nothing else reads the old array, else 2",
        f"{_METAL}/primitives.cpp, SliceUpdate; copy_gpu takes over a buffer that nobody needs",
        _slice_update,
    ),
    "Gather": Rule("1", f"{_METAL}/indexing.cpp, Gather", _one),
    "GatherAxis": Rule("1", f"{_METAL}/indexing.cpp, GatherAxis", _one),
    "ArgReduce": Rule("1", f"{_METAL}/primitives.cpp, ArgReduce", _one),
    "LogSumExp": Rule(
        "1, and 1 if rows must be copied", f"{_METAL}/logsumexp.cpp, LogSumExp", _last_axis
    ),
    "Softmax": Rule("1, and 1 if rows must be copied", f"{_METAL}/softmax.cpp", _last_axis),
    "Reduce": Rule("1 over the last axis of rows", f"{_METAL}/reduce.cpp, row_reduce", _reduce),
    "Matmul": Rule("1 for one vector", f"{_METAL}/matmul.cpp, gemv", _matmul),
    "AddMM": Rule("1 for one vector", f"{_METAL}/matmul.cpp, gemv_axbpy", _matmul),
    "rms_norm": Rule(
        "1, and 1 if rows must be copied", f"{_METAL}/normalization.cpp, RMSNorm", _norm
    ),
    "layer_norm": Rule(
        "1, and 1 if rows must be copied", f"{_METAL}/normalization.cpp, LayerNorm", _norm
    ),
    "rope": Rule("1, and 1 if its input must be copied first", f"{_METAL}/rope.cpp, RoPE", _rope),
    "scaled_dot_product_attention": Rule(
        "1 in one pass, 2 split over keys; composite: scale, product, mask if any, softmax, "
        "product, and 1 for each product that is split over its sum",
        f"{_METAL}/scaled_dot_product_attention.cpp, has_fused_kernel and eval_gpu; "
        f"mlx/fast.cpp, the fallback; {_METAL}/matmul.cpp, steel_matmul_splitk",
        _attention,
    ),
    "quantized_matmul": Rule("1 below six rows", f"{_METAL}/quantized.cpp, qmv", _quantized_matmul),
    "dequantize": Rule("1", f"{_METAL}/quantized.cpp, fast::Quantize", _one),
    "metal_kernel": Rule(
        "1, 1 an output with an initial value, and 1 an input that is not row contiguous, unless "
        "the kernel minds strides",
        f"{_METAL}/custom_kernel.cpp, CustomKernel",
        _metal_kernel,
    ),
    "compile": Rule(
        "1 a chain that mx.compile has fused, 1 an elementwise operation that it has left",
        f"mlx/compile.cpp, compile_fuse; {_METAL}/compiled.cpp",
        _compile,
    ),
}
