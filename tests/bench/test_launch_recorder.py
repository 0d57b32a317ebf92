"""Stand-ins: shapes, dependencies, and what becomes of compiled functions."""

from typing import Any

import mlx.core as mx
import pytest
from launch_recorder import Recorder
from launch_trace import CALL, export_graph
from launches import Launch, count


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """An installed recorder; MLX's own functions come back after the test."""
    for name in ("compile", "quantized_matmul", "dequantize"):
        monkeypatch.setattr(mx, name, getattr(mx, name))
    for name in ("rms_norm", "layer_norm", "rope", "scaled_dot_product_attention", "metal_kernel"):
        monkeypatch.setattr(mx.fast, name, getattr(mx.fast, name))
    made = Recorder()
    made.install()
    return made


def launches(recorder: Recorder, *outputs: mx.array) -> list[tuple[str, int]]:
    """Return (operation, kernels) of what evaluating the outputs launches."""
    return [(of.operation, of.count) for of in count(export_graph(recorder, outputs), "g")]


def double(x: mx.array) -> mx.array:
    """Return 2x by a kernel whose source nobody reads."""
    make: Any = mx.fast.metal_kernel
    return make(name="double", input_names=["x"], output_names=["y"], source="")(
        inputs=[x],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )[0]


def test_an_operation_stays_whole_and_keeps_what_it_depends_on(recorder: Recorder) -> None:
    x = mx.ones((2, 64))
    out = mx.fast.rms_norm(mx.exp(x), mx.ones((64,)), 1e-6) + 1
    assert out.shape == (2, 64)
    # mx.ones is a kernel of its own, for x and for the weight.
    assert sorted(launches(recorder, out)) == [
        ("Add", 1),
        ("Exp", 1),
        ("Full", 1),
        ("Full", 1),
        ("rms_norm", 1),
    ]


def test_what_nobody_needs_is_not_counted(recorder: Recorder) -> None:
    x = mx.ones((64,))
    mx.eval(x)
    double(x)
    assert launches(recorder, double(double(x))) == [("double", 1), ("double", 1)]


def test_a_graph_is_cut_where_arrays_are_evaluated(recorder: Recorder) -> None:
    x = double(mx.ones((64,)))
    mx.eval(x)
    assert launches(recorder, mx.exp(x)) == [("Exp", 1)]


def test_a_compiled_chain_is_what_mlx_makes_of_it(recorder: Recorder) -> None:
    x = mx.ones((64,))
    mx.eval(x)
    short = mx.compile(lambda x: mx.tanh(x / 30) * 30)
    assert [number for _, number in launches(recorder, short(x))] == [1]

    def deep(x: mx.array) -> mx.array:
        for _ in range(20):  # more than one kernel may hold
            x = mx.sin(x)
        return x

    assert launches(recorder, mx.compile(deep)(x)) == [("deep", 2)]


def test_a_compiled_function_may_call_kernels(recorder: Recorder) -> None:
    x = mx.ones((64,))
    mx.eval(x)

    def mixed(x: mx.array) -> mx.array:
        return mx.exp(double(mx.exp(x) + 1)) * 2

    assert launches(recorder, mx.compile(mixed)(x)) == [("mixed", 3)]


def test_one_compiled_function_in_another_is_part_of_it(recorder: Recorder) -> None:
    x = mx.ones((64,))
    mx.eval(x)
    inner = mx.compile(lambda x: mx.exp(x) + 1)

    def outer(x: mx.array) -> mx.array:
        return inner(x) * 2

    assert launches(recorder, mx.compile(outer)(x)) == [("outer", 1)]
    assert len(recorder.calls) == 1


def test_shapes_of_quantized_operations(recorder: Recorder) -> None:
    weight, scales, biases = mx.quantize(mx.ones((128, 64)), group_size=64, bits=4)
    x = mx.ones((1, 64))
    assert mx.quantized_matmul(x, weight, scales, biases, True, group_size=64, bits=4).shape == (
        1,
        128,
    )
    table = mx.dequantize(weight, scales, biases, group_size=64, bits=4)
    assert table.shape == (128, 64)
    assert [call.name for call in recorder.calls] == ["quantized_matmul", "dequantize"]


def test_layers_are_told_apart(recorder: Recorder) -> None:
    import mlx.nn as nn

    class Layer(nn.Module):
        def __call__(self, x: mx.array) -> mx.array:
            return mx.exp(double(x))

    model = nn.Module()
    layers = [Layer(), Layer()]
    model.layers = layers
    recorder.watch(model, layers)
    x = mx.ones((64,))
    mx.eval(x)
    out = mx.sin(x)
    for layer in layers:
        out = layer(out)
    document = export_graph(recorder, [double(out)])
    assert [node["name"] for node in document["nodes"]].count(CALL) == 3
    assert count(document, "g") == [
        Launch("Sin", -1, 1),
        Launch("double", 0, 1),
        Launch("Exp", 0, 1),
        Launch("double", 1, 1),
        Launch("Exp", 1, 1),
        Launch("double", 2, 1),
    ]
