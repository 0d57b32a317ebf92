"""The text of a kernel is byte-equal to the one that MLX itself writes."""

from typing import Any

import mlx.core as mx
import pytest
from metal_sim.generate import InputKind, generate

from mlx_gemma4.kernels.registry import KERNELS

ALL_ATTRIBUTES = """
  // dispatch_quadgroups_per_threadgroup dispatch_simdgroups_per_threadgroup grid_origin grid_size
  // dispatch_threads_per_threadgroup quadgroup_index_in_threadgroup quadgroups_per_threadgroup
  // simdgroup_index_in_threadgroup simdgroups_per_threadgroup thread_execution_width
  // thread_index_in_quadgroup thread_index_in_simdgroup thread_index_in_threadgroup
  // thread_position_in_grid thread_position_in_threadgroup threadgroup_position_in_grid
  // threadgroups_per_grid threads_per_grid threads_per_simdgroup threads_per_threadgroup
"""
DTYPES = [
    *(mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64),
    *(mx.float16, mx.bfloat16, mx.float32, mx.complex64),
]


def make(source: str, inputs: list[Any], outputs: int = 1, **options: Any) -> tuple[dict, dict]:
    """Return the arguments of metal_kernel, and those of the kernel that it returns."""
    names = [f"in{i}" for i in range(len(inputs))]
    dtypes = options.pop("output_dtypes", [mx.float32] * outputs)
    template = options.pop("template", None)
    construction = {
        "name": "probe",
        "input_names": names,
        "output_names": [f"out{i}" for i in range(len(dtypes))],
        "source": source,
        **options,
    }
    call = {
        "inputs": inputs,
        "output_shapes": [(32,)] * len(dtypes),
        "output_dtypes": dtypes,
        "grid": (32, 1, 1),
        "threadgroup": (32, 1, 1),
        "template": template,
    }
    return construction, call


SMALL, LARGE, SCALAR = mx.zeros((7,)), mx.zeros((8,)), mx.array(1.0)
CASES = {
    "nothing mentioned": make("", [LARGE]),
    "every attribute": make(ALL_ATTRIBUTES, [LARGE]),
    "address space by size": make("", [SMALL, LARGE, SCALAR, mx.zeros((2, 4)), mx.zeros((0,))]),
    "python numbers": make("", [3, 2.5, True]),
    "shape, strides, ndim": make("in0_shape in0_strides in0_ndim in1_ndim", [LARGE, SMALL]),
    "none of a scalar": make("in0_shape in1_shape in0_ndim", [SCALAR, LARGE]),
    "names found inside of words": make("domain0_shape", [LARGE]),
    "several outputs": make("", [LARGE], 3),
    "several outputs and attributes": make("thread_position_in_grid", [LARGE], 3),
    "no inputs": make("grid_size", []),
    # MLX closes the signature after the first output here, so that the kernel does not compile.
    "several outputs and a shape": make("in0_shape", [LARGE], 2),
    "atomic outputs": make("", [LARGE], 2, atomic_outputs=True),
    "header": make("", [LARGE], header="#include <metal_simdgroup>\nint f() { return 1; }\n"),
    "every dtype in": make("", [mx.zeros((9,)).astype(dtype) for dtype in DTYPES]),
    "every dtype out": make("thread_position_in_grid", [LARGE], output_dtypes=DTYPES),
    "template": make(
        "", [LARGE], template=[("T", mx.bfloat16), ("N", -3), ("B", True), ("M", 64), ("C", False)]
    ),
    "template of dtypes": make("", [LARGE], template=[(f"T{i}", d) for i, d in enumerate(DTYPES)]),
    "one template argument": make("thread_position_in_grid", [LARGE], template=[("N", 4)]),
}


@pytest.mark.parametrize("label", CASES)
def test_text_is_the_one_of_mlx(label, mlx_text):
    construction, call = CASES[label]
    arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in call["inputs"]]
    generated = generate(
        construction["name"],
        construction["input_names"],
        construction["output_names"],
        construction["source"],
        construction.get("header", ""),
        [InputKind(x.dtype, x.ndim, x.size) for x in arrays],
        call["output_dtypes"],
        call["template"] or (),
        construction.get("atomic_outputs", False),
    )
    assert generated.text == mlx_text(construction, call)


def test_text_as_documented(metal_sim, capsys):
    """The example of MLX's documentation on custom kernels, written out."""
    kernel = metal_sim.metal_kernel(
        name="myexp",
        input_names=["inp"],
        output_names=["out"],
        source="uint elem = thread_position_in_grid.x;\nout[elem] = metal::exp(T(inp[elem]));",
    )
    kernel(
        inputs=[mx.zeros((4, 16), mx.float16)],
        template=[("T", mx.float32)],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(4, 16)],
        output_dtypes=[mx.float16],
        verbose=True,
    )
    name = "custom_kernel_myexp__float_float16_t_float16_t"
    expected = f"""template <typename T>
[[kernel]] void {name}(
  const device float16_t* inp [[buffer(0)]],
  device float16_t* out [[buffer(1)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {{
uint elem = thread_position_in_grid.x;
out[elem] = metal::exp(T(inp[elem]));
}}

template [[host_name("{name}")]] [[kernel]] decltype({name}<float>) {name}<float>;
"""
    assert metal_sim.launches[-1].source == expected
    assert capsys.readouterr().out == f"Generated source code for `myexp`:\n```\n{expected}\n```\n"


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_text_of_every_kernel_of_ours(name, metal_sim, mlx_text, monkeypatch):
    """What the simulator has proven of a kernel, it has proven of what MLX will compile."""
    metal_sim.mode = "run"
    compared = []

    def metal_kernel(**construction: Any) -> Any:
        simulated = metal_sim.metal_kernel(**construction)

        def kernel(**call: Any) -> list[mx.array]:
            outputs = simulated(**call)
            assert metal_sim.launches[-1].source == mlx_text(construction, call)
            compared.append(construction["name"])
            return outputs

        return kernel

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        for case in KERNELS[name].check_cases(dtype):
            KERNELS[name].launch(*case.arguments)
    assert set(compared) <= set(KERNELS[name].sources)
    assert compared
