import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params


@pytest.fixture
def calls(monkeypatch):
    """Return what `mx.fast.metal_kernel` was called with, and what its kernels were."""
    calls = []

    def metal_kernel(**arguments):
        calls.append(arguments)

        def run(**arguments):
            calls.append(arguments)
            return [mx.zeros(shape) for shape in arguments["output_shapes"]]

        return run

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    return calls


def launch(kernel, threads=64):
    return kernel(
        inputs=[mx.ones(8)],
        template=[("T", mx.float32)],
        grid=(64, 3, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[[2, 3]],
        output_dtypes=[mx.float32],
    )


def test_is_built_when_it_first_runs(calls):
    kernel = MetalKernel("residual_norms", inputs=("x",), outputs=("h",))
    assert calls == []
    (out,) = launch(kernel)
    launch(kernel)
    assert out.shape == (2, 3)
    built, *launches = calls
    assert (built["name"], built["input_names"], built["output_names"]) == (
        "residual_norms",
        ["x"],
        ["h"],
    )
    assert "threadgroup_sum" in built["header"]
    assert "//" not in built["source"] + built["header"]
    assert built["ensure_row_contiguous"]
    assert len(launches) == 2
    assert launches[0]["grid"] == (64, 3, 1)


def test_declarations_stand_before_the_source(calls):
    declaration = "device T* y = nullptr;\n"
    for declarations in ("", declaration):
        launch(
            MetalKernel("residual_norms", inputs=("x",), outputs=("h",), declarations=declarations)
        )
    plain, declared = (call["source"] for call in calls if "source" in call)
    assert declared == declaration + plain


def test_is_built_anew_for_another_maker(calls, monkeypatch):
    kernel = MetalKernel("residual_norms", inputs=("x",), outputs=("h",))
    launch(kernel)
    before = len(calls)
    maker = mx.fast.metal_kernel
    monkeypatch.setattr(mx.fast, "metal_kernel", lambda **arguments: maker(**arguments))
    launch(kernel)
    assert len(calls) == before + 2


def test_a_grid_is_whole_threadgroups(calls):
    kernel = MetalKernel("residual_norms", inputs=("x",), outputs=("h",))
    with pytest.raises(AssertionError, match="residual_norms"):
        launch(kernel, threads=48)


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 8), (9, 9)])
def test_params_have_room_for_eight(count, size):
    packed = pack_params(*range(1, count + 1))
    assert packed.dtype == mx.int32
    assert np.array(packed).tolist() == [*range(1, count + 1), *[0] * (size - count)]


def test_params_hold_floats_by_their_bits():
    packed = np.array(pack_params(1, 1e-6, -2.5))
    assert packed[0] == 1
    assert packed[1:3].view(np.float32).tolist() == [np.float32(1e-6), -2.5]


def test_params_tell_numbers_of_other_types_apart():
    assert np.array(pack_params(1))[0] == 1
    assert np.array(pack_params(1.0)).view(np.float32)[0] == 1
    assert pack_params(3, 1) is pack_params(3, 1)
