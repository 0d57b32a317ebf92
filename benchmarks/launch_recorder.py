"""Stand-ins for MLX's operations that keep shapes alone, and a list of the calls they were given.

On a CPU some operations come apart that are one kernel on a GPU, `mx.fast.rms_norm` into 11.  Each
of these is replaced by an entry in a list and arrays of the right shapes that depend on the
operation's inputs, so that the graph stays whole.  Elementwise chains are fused by MLX's own
`mx.compile`, whose result is counted, not guessed.  Parameters have their real shapes and one value
each, so that a model of any size fits in memory.

Only the standard library and MLX are imported: this runs in every program's own environment.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map


@dataclass
class Call:
    """A call that a stand-in has recorded.

    Attributes:
        name: Of the function in `mx`, or "metal_kernel", or "compile".
        label: The parameter, kernel, or function that it is about.
        layer: Index of the decoder layer that made it, the number of layers after the last one, -1
            before the first.
        arguments: What the number of launches depends on besides shapes.
        shapes: Of inputs and of outputs.
    """

    name: str
    label: str
    layer: int
    arguments: dict[str, Any]
    shapes: tuple[list[list[int]], list[list[int]]]


class Recorder:
    """Stand-ins for MLX's operations, and what they have recorded."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.layer = -1
        self._names: dict[int, str] = {}
        self._placeholders: dict[tuple[Any, ...], mx.array] = {}
        self._compile = mx.compile
        self._is_compiling = False

    def install(self) -> None:
        """Replace MLX's functions, before a program is imported that keeps some of them."""
        mx.fast.rms_norm = self._like_first("rms_norm")
        mx.fast.layer_norm = self._like_first("layer_norm")
        mx.fast.rope = self._rope
        mx.fast.scaled_dot_product_attention = self._attention
        mx.fast.metal_kernel = self._metal_kernel
        mx.quantized_matmul = self._quantized_matmul
        mx.dequantize = self._dequantize
        mx.compile = self._compiled

    @contextmanager
    def pretended_gpu(self) -> Iterator[None]:
        """Let a program that asks believe that there is a GPU; arrays stay where they are."""
        before = mx.default_device, mx.metal.is_available
        mx.default_device, mx.metal.is_available = lambda: mx.Device(mx.gpu), lambda: True
        try:
            yield
        finally:
            mx.default_device, mx.metal.is_available = before

    def watch(self, model: Any, layers: Sequence[Any]) -> None:
        """Give a model parameters of one value each, and record which layer makes a call."""
        model.update(tree_map(lambda a: _constant(a.shape, a.dtype), model.parameters()))
        parameters = tree_flatten(model.parameters())
        mx.eval([array for _, array in parameters])
        self._names = {id(array): path.split(".")[-2] for path, array in parameters if "." in path}
        indices = {id(layer): index for index, layer in enumerate(layers)}
        for kind in {type(layer) for layer in layers}:
            self._watch_class(kind, indices)

    def _watch_class(self, kind: Any, indices: dict[int, int]) -> None:
        original = kind.__call__

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            self.layer = indices[id(layer)]
            try:
                return original(layer, *args, **kwargs)
            finally:
                self.layer = len(indices) if self.layer == len(indices) - 1 else self.layer

        kind.__call__ = call

    def placeholder(self, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """Return an evaluated array of one value that takes no memory."""
        key = (*shape, dtype)
        if key not in self._placeholders:
            self._placeholders[key] = _constant(shape, dtype)
            mx.eval(self._placeholders[key])
        return self._placeholders[key]

    def record(
        self,
        name: str,
        label: str,
        inputs: Sequence[Any],
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
        **arguments: Any,
    ) -> list[mx.array]:
        """Record a call; return arrays of the outputs' shapes that depend on its inputs."""
        tag = mx.array(len(self.calls), mx.int32)  # finds the call again in an exported graph
        arrays = [value for value in inputs if isinstance(value, mx.array)]
        shapes = [list(a.shape) for a in arrays], [list(shape) for shape, _ in outputs]
        self.calls.append(Call(name, label, self.layer, arguments, shapes))
        # A function that is being compiled may hold no array from outside but scalars.
        make = _repeated_scalar if self._is_compiling else self.placeholder
        return mx.depends([make(*output) for output in outputs], [tag, *arrays])

    def _name_of(self, *arrays: Any, default: str) -> str:
        return next((self._names[id(a)] for a in arrays if id(a) in self._names), default)

    def _like_first(self, name: str) -> Callable[..., mx.array]:
        """Return a stand-in for a norm, whose output is like its first input."""

        def norm(x: mx.array, *rest: Any, **kwargs: Any) -> mx.array:
            weights = [a for a in (*rest, *kwargs.values()) if isinstance(a, mx.array)]
            dtype = _promoted(x, *weights)
            label = self._name_of(*weights, default=name)
            return self.record(name, label, [x, *weights], [(x.shape, dtype)])[0]

        return norm

    def _rope(
        self, a: mx.array, dims: int, *, offset: Any, freqs: Any = None, **_: Any
    ) -> mx.array:
        return self.record("rope", "rope", [a, offset, freqs], [(a.shape, a.dtype)], dims=dims)[0]

    def _attention(
        self, q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **_: Any
    ) -> mx.array:
        kind = "array" if isinstance(mask, mx.array) else mask
        shape = (*q.shape[:-1], v.shape[-1])
        return self.record(
            "scaled_dot_product_attention",
            "attention",
            [q, k, v, mask],
            [(shape, q.dtype)],
            mask=kind,
        )[0]

    def _quantized_matmul(
        self,
        x: mx.array,
        w: mx.array,
        scales: mx.array,
        biases: Any = None,
        transpose: bool = True,
        group_size: Any = None,
        bits: Any = None,
        mode: str = "affine",
        **_: Any,
    ) -> mx.array:
        del group_size, mode
        N = w.shape[-2] if transpose else w.shape[-1] * 32 // (bits or 4)
        label = self._name_of(w, default="quantized_matmul")
        inputs = [x, w, scales, biases]
        out = (*x.shape[:-1], N), x.dtype
        return self.record("quantized_matmul", label, inputs, [out], transpose=transpose)[0]

    def _dequantize(
        self, w: mx.array, scales: mx.array, biases: Any = None, *rest: Any, **kwargs: Any
    ) -> mx.array:
        bits = (rest[1] if len(rest) > 1 else kwargs.get("bits")) or 4
        shape = (*w.shape[:-1], w.shape[-1] * 32 // bits)
        inputs = [w, scales, biases]
        return self.record("dequantize", "dequantize", inputs, [(shape, scales.dtype)])[0]

    def _metal_kernel(
        self, name: str, *_: Any, ensure_row_contiguous: bool = True, **__: Any
    ) -> Callable[..., list[mx.array]]:
        """Return a stand-in for a kernel; its Metal source is not read."""

        def launch(
            *, inputs: Sequence[Any], output_shapes: Any, output_dtypes: Any, **given: Any
        ) -> list[mx.array]:
            outputs = list(zip(output_shapes, output_dtypes, strict=True))
            matrices = [a for a in inputs if _is_array(a) and a.ndim == 2]
            label = f"{name} {self._name_of(*matrices, default='')}".strip()
            return self.record(
                "metal_kernel",
                label,
                inputs,
                outputs,
                copies=ensure_row_contiguous,
                fills=len(outputs) if given.get("init_value") is not None else 0,
            )

        return launch

    def _compiled(self, fun: Callable[..., Any], *rest: Any, **options: Any) -> Callable[..., Any]:
        """Return a stand-in for a compiled function; it is compiled once a set of shapes."""
        known: dict[tuple[Any, ...], tuple[list[Any], bool, dict[str, Any]]] = {}

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_compiling:  # MLX inlines a compiled function in another
                return fun(*args, **kwargs)
            values = [*args, *kwargs.values()]
            key = tuple((*v.shape, v.dtype) if isinstance(v, mx.array) else v for v in values)
            if key not in known:
                known[key] = self._measure(self._compile(fun, *rest, **options), args, kwargs)
            outputs, is_single, arguments = known[key]
            label = getattr(fun, "__name__", "compiled")
            arrays = self.record("compile", label, values, outputs, **arguments)
            return arrays[0] if is_single else arrays

        return call

    def _measure(
        self, compiled: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> tuple[list[Any], bool, dict[str, Any]]:
        """Return the outputs of a compiled function, and what MLX has made of its operations.

        `kernels` are the operations left after fusing, by name; `calls` those that have stand-ins,
        none of which MLX fuses.
        """

        def stand_in(value: Any) -> Any:
            return self.placeholder(value.shape, value.dtype) if _is_array(value) else value

        first, self._is_compiling = len(self.calls), True
        try:
            result = compiled(*map(stand_in, args), **{k: stand_in(v) for k, v in kwargs.items()})
        finally:
            self._is_compiling = False
        arrays = [result] if _is_array(result) else list(result)
        arguments = {
            "kernels": dict(count_nodes(arrays)),
            "calls": [asdict(call) for call in self.calls[first:]],
        }
        return [(a.shape, a.dtype) for a in arrays], _is_array(result), arguments


def _constant(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """Return an array of one value, repeated without memory."""
    return mx.broadcast_to(mx.zeros((1,) * len(shape), dtype), shape)


def _repeated_scalar(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    return mx.broadcast_to(mx.array(0, dtype), shape)


def _is_array(value: Any) -> bool:
    return isinstance(value, mx.array)


def _promoted(*arrays: mx.array) -> mx.Dtype:
    """Return the dtype that MLX gives to a sum of arrays; nothing is computed."""
    total = mx.zeros((), arrays[0].dtype)
    for array in arrays:
        total = total + mx.zeros((), array.dtype)
    return total.dtype


def count_nodes(arrays: Sequence[mx.array]) -> Counter[str]:
    """Count the operations of a graph by name, each as often as the graph holds it."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return Counter(re.findall(r'label ="([^"]+)"', text.getvalue()))
