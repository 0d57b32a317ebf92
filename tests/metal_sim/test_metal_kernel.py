"""The interface of mx.fast.metal_kernel: what goes in, what comes out, what is refused."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_sim import MetalError

DTYPES = [
    *(mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64),
    *(mx.float16, mx.bfloat16, mx.float32, mx.complex64),
]
COPY = "uint i = thread_position_in_grid.x;\no[i] = a[i];"


def run(source: str, inputs: list[Any], **options: Any) -> list[mx.array]:
    """Run a source on inputs a, b, c and output o, or as the options say."""
    construction = {
        key: options.pop(key)
        for key in ("header", "ensure_row_contiguous", "atomic_outputs", "compile_options")
        if key in options
    }
    kernel: Any = mx.fast.metal_kernel(
        name="probe",
        input_names=list("abc"[: len(inputs)]),
        output_names=options.pop("output_names", ["o"]),
        source=source,
        **construction,
    )
    call = {
        "output_shapes": [(16,)],
        "output_dtypes": [mx.float32],
        "grid": (16, 1, 1),
        "threadgroup": (16, 1, 1),
        **options,
    }
    return kernel(inputs=inputs, **call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_in_out_and_as_template(dtype, metal_sim):
    # complex64 is a class, and the strict pass does not copy classes out of device memory.
    metal_sim.strict = dtype != mx.complex64
    a = (mx.arange(16) % 2 if dtype == mx.bool_ else mx.arange(16)).astype(dtype)
    source = "uint i = thread_position_in_grid.x;\nT x = a[i];\no[i] = x;"
    (o,) = run(source, [a], template=[("T", dtype)], output_dtypes=[dtype])
    assert o.dtype == dtype
    assert mx.array_equal(o, a)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32], ids=str)
def test_scalars_are_references(dtype, metal_sim):
    (o,) = run("o[thread_position_in_grid.x] = a + b;", [mx.array(3, dtype), 4])
    assert o.tolist() == [7.0] * 16


@pytest.mark.parametrize("shape", [(), (1,), (2, 8)])
def test_shapes_of_outputs(shape, metal_sim):
    size = int(np.prod(shape))
    (o,) = run(
        "o[thread_position_in_grid.x] = bfloat(2.0f);",
        [],
        output_shapes=[shape],
        output_dtypes=[mx.bfloat16],
        grid=(size, 1, 1),
    )
    assert o.shape == shape
    assert mx.all(o == 2)


def test_template_arguments(metal_sim):
    source = "o[thread_position_in_grid.x] = B ? T(N) : T(0);"
    for value, expected in ((True, -3.0), (False, 0.0)):
        template = [("T", mx.bfloat16), ("B", value), ("N", -3)]
        (o,) = run(source, [], template=template, output_dtypes=[mx.bfloat16])
        assert o.tolist() == [expected] * 16


def test_inputs_are_evaluated(metal_sim):
    a = mx.arange(16, dtype=mx.float32) * 2 + 1
    (o,) = run(COPY, [a])
    assert o.tolist() == [2 * i + 1 for i in range(16)]


def test_strided_inputs_are_copied_by_default(metal_sim):
    a = mx.arange(32, dtype=mx.float32).reshape(16, 2)
    source = COPY + "\n// a_strides a_shape a_ndim"
    (o,) = run(source, [a[:, 1].reshape(16, 1)])
    assert o.tolist() == list(range(1, 32, 2))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_strides_if_asked(dtype, metal_sim):
    a = mx.arange(64).astype(dtype).reshape(4, 16)[:, ::4].T  # [4, 4]
    source = """
      uint i = thread_position_in_grid.x;
      o[i] = a[i / a_shape[1] * a_strides[0] + i % a_shape[1] * a_strides[1]];
      if (a_ndim != 2) o[i] = -1;"""
    (o,) = run(source, [a], ensure_row_contiguous=False)
    assert mx.array_equal(o.reshape(4, 4), a.astype(mx.float32))


def test_bounds_of_a_strided_input(metal_sim):
    a = mx.arange(64, dtype=mx.float32).reshape(4, 16)[:, ::4]
    source = "o[thread_position_in_grid.x] = a[thread_position_in_grid.x * 4 + {}];"
    run(source.format(0), [a], ensure_row_contiguous=False)
    with pytest.raises(MetalError, match="device_bounds"):
        run(source.format(1), [a], ensure_row_contiguous=False)


def test_negative_strides(metal_sim):
    a = mx.arange(16, dtype=mx.float32)[::-1]
    source = "uint i = thread_position_in_grid.x;\no[i] = a[int(i) * int(a_strides[0])];"
    (o,) = run(source, [a], ensure_row_contiguous=False)
    assert o.tolist() == list(range(15, -1, -1))


def test_init_value(metal_sim):
    source = "if (thread_position_in_grid.x < 3) o[thread_position_in_grid.x] = bfloat(7.0f);"
    (o,) = run(source, [], init_value=2.5, output_dtypes=[mx.bfloat16])
    assert o.tolist() == [7.0] * 3 + [2.5] * 13


def test_outputs_are_poisoned(metal_sim):
    metal_sim.mode = "run"
    source = "if (thread_position_in_grid.x < 3) o[thread_position_in_grid.x] = 7;"
    (o,) = run(source, [])
    assert o[:3].tolist() == [7.0] * 3
    assert mx.all(mx.isnan(o[3:]))


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.float32], ids=str)
def test_atomic_outputs(dtype, metal_sim):
    source = """
      uint i = thread_position_in_grid.x;
      atomic_fetch_add_explicit(&o[i % 2], T(i), memory_order_relaxed);"""
    (o,) = run(
        source,
        [],
        atomic_outputs=True,
        template=[("T", dtype)],
        init_value=0,
        grid=(64, 1, 1),
        output_shapes=[(2,)],
        output_dtypes=[dtype],
    )
    assert o.tolist() == [sum(range(0, 64, 2)), sum(range(1, 64, 2))]


def test_threadgroup_is_clamped_to_the_grid(metal_sim):
    source = """
      uint i = thread_position_in_grid.x;
      o[i] = threads_per_threadgroup.x * 100 + threadgroups_per_grid.x;"""
    (o,) = run(source, [], threadgroup=(64, 1, 1))
    assert o.tolist() == [1601.0] * 16


def test_places_in_a_grid_that_is_no_multiple(metal_sim):
    source = """
      uint3 p = thread_position_in_grid, q = thread_position_in_threadgroup;
      uint3 g = threadgroup_position_in_grid, n = dispatch_threads_per_threadgroup;
      uint i = p.x + threads_per_grid.x * (p.y + threads_per_grid.y * p.z);
      o[i] = p.x == g.x * n.x + q.x && p.y == g.y * n.y + q.y && p.z == g.z * n.z + q.z;
      o[i] *= threads_per_threadgroup.x;"""
    (o,) = run(source, [], grid=(7, 5, 3), threadgroup=(4, 2, 2), output_shapes=[(3, 5, 7)])
    assert o[0, 0].tolist() == [4.0] * 4 + [3.0] * 3
    assert mx.array_equal(o, mx.broadcast_to(o[:1, :1], o.shape))


def test_places_in_simdgroups(metal_sim):
    source = """
      uint i = thread_position_in_grid.x;
      o[i] = thread_index_in_threadgroup;
      p[i] = simdgroup_index_in_threadgroup * threads_per_simdgroup + thread_index_in_simdgroup;
      q[i] = quadgroup_index_in_threadgroup * 4 + thread_index_in_quadgroup;
      r[i] = simdgroups_per_threadgroup * 100 + quadgroups_per_threadgroup;"""
    outputs = run(
        source,
        [],
        output_names=list("opqr"),
        grid=(80, 1, 1),
        threadgroup=(40, 1, 1),
        output_shapes=[(80,)] * 4,
        output_dtypes=[mx.uint32] * 4,
    )
    expected = [i % 40 for i in range(80)]
    assert [o.tolist() for o in outputs] == [expected, expected, expected, [210] * 80]


def test_header_is_in_front(metal_sim):
    header = "#include <metal_stdlib>\nusing namespace metal;\n#define TWICE(x) ((x) * 2)\n"
    (o,) = run("o[thread_position_in_grid.x] = TWICE(4);", [], header=header)
    assert o.tolist() == [8.0] * 16


def test_functions_of_mlx_are_there(metal_sim):
    """MLX puts its utils.h before every kernel."""
    (o,) = run("o[thread_position_in_grid.x] = ceildiv(9, 4) + Limits<float>::finite_max * 0;", [])
    assert o.tolist() == [3.0] * 16


@pytest.mark.parametrize(("mode", "is_fused"), [("safe", False), ("relaxed", True)])
def test_math_mode_says_whether_products_are_fused(mode, is_fused, metal_sim):
    x = np.float32(1 + 2**-12)
    source = "float x = a[0], y = a[1];\no[thread_position_in_grid.x] = x * x + y;"
    rounded = np.float32(x * x)
    a = mx.array(np.array([x, -rounded]))
    (o,) = run(source, [a], compile_options={"math_mode": mode})
    assert (o[0].item() != 0) == is_fused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_shapes": []}, "Expected `output_shapes` to have size 1 but got size 0"),
        ({"output_dtypes": []}, "Expected `output_dtypes` to have size 1 but got size 0"),
        ({"output_names": []}, "Must specify at least one output"),
        ({"compile_options": {"speed": 1}}, "Unknown compile option `speed`"),
        ({"compile_options": {"math_mode": "wild"}}, "Expected math_mode to be"),
        ({"compile_options": "fast"}, "Expected `compile_options` to be a dict"),
        ({"template": [("N", 2**31)]}, "not allowed; bool, int of 32 bits, or Dtype are"),
        ({"template": [("X", 0.5)]}, "put floats into an input"),
        ({"stream": mx.cpu}, "Only supports the GPU"),
        ({"output_dtypes": [mx.float64]}, "Metal has no such type"),
    ],
)
def test_refused(options, message, metal_sim):
    with pytest.raises(ValueError, match=message):
        run("o[thread_position_in_grid.x] = 0;", [], **options)


def test_as_many_inputs_as_names(metal_sim):
    kernel: Any = mx.fast.metal_kernel("probe", ["a", "b"], ["o"], "o[0] = 0;")
    with pytest.raises(ValueError, match="Expected `inputs` to have size 2 but got size 0"):
        kernel(
            inputs=[],
            output_shapes=[(1,)],
            output_dtypes=[mx.float32],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
        )


def test_not_inside_of_a_trace(metal_sim):
    mx.enable_compile()
    with pytest.raises(RuntimeError, match=r"mx\.compile"):
        mx.compile(lambda a: run(COPY, [a])[0])(mx.zeros((16,)))


def test_launches_are_remembered(metal_sim):
    run(COPY, [mx.zeros((16,))], template=[("N", 4)])
    (launch,) = metal_sim.launches
    assert (launch.name, launch.mode, launch.grid) == ("probe", "check", (16, 1, 1))
    assert launch.threadgroup == (16, 1, 1)
    assert launch.template == (("N", 4),)
    assert COPY in launch.source
    assert launch.counts is None
    metal_sim.clear()
    assert metal_sim.launches == []
