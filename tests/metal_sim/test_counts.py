"""Counts that can be told without running: bytes three ways, barriers, operations."""

from typing import Any

import mlx.core as mx
import pytest
from metal_sim import Bytes, Counts


@pytest.fixture
def count(metal_sim):
    """Return a function that runs a source on input a and output o, and returns the counts."""
    metal_sim.mode = "count"

    def run(source: str, a: mx.array, size: int, threads: int, **options: Any) -> Counts:
        kernel = metal_sim.metal_kernel(
            "probe", ["a"], ["o"], "uint i = thread_position_in_grid.x;\n" + source
        )
        kernel(
            inputs=[a],
            output_shapes=[(size,)],
            output_dtypes=[mx.float32],
            grid=(threads, 1, 1),
            **{"threadgroup": (64, 1, 1), **options},
        )
        return metal_sim.launches[-1].counts

    return run


def test_a_copy_reads_and_writes_every_byte_once(count):
    counts = count("o[i] = a[i];", mx.zeros((256,)), 256, 256)
    assert counts.read["a"] == counts.written["o"] == Bytes(1024, 1024, 1024)
    assert counts.read["o"] == counts.written["a"] == Bytes(0, 0, 0)
    assert counts.threadgroups == 4


def test_a_broadcast_three_ways(count):
    """256 lanes in 4 threadgroups read the same 8 floats."""
    source = "float s = 0;\nfor (int k = 0; k < 8; k++) s += a[k];\no[i] = s;"
    counts = count(source, mx.zeros((8,)), 256, 256)
    assert counts.read["a"] == Bytes(by_lane=256 * 32, by_threadgroup=4 * 32, distinct=32)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.uint8], ids=str)
def test_bytes_of_dtypes(dtype, count):
    counts = count("o[i] = float(a[i]);", mx.zeros((64,), dtype), 64, 64)
    assert counts.read["a"] == Bytes(*[64 * dtype.size] * 3)


def test_vectors_count_as_their_bytes(count):
    source = "float4 v = ((const device float4*)a)[i];\no[i] = v.x + v.y + v.z + v.w;"
    counts = count(source, mx.zeros((256,)), 64, 64)
    assert counts.read["a"] == Bytes(1024, 1024, 1024)


def test_what_is_read_in_part(count):
    counts = count("o[i] = a[i * 3];", mx.zeros((192,)), 64, 64)
    assert counts.read["a"].distinct == 256


def test_one_byte_written_twice_by_one_thread(count):
    source = "o[i] = 1;\nthreadgroup_barrier(mem_flags::mem_device);\no[i] += a[i];"
    counts = count(source, mx.zeros((64,)), 64, 64)
    assert counts.written["o"] == Bytes(512, 256, 256)
    assert counts.read["o"] == Bytes(256, 256, 256)


def test_threadgroup_memory_and_barriers(count):
    source = """
      threadgroup float b[64];
      uint t = thread_index_in_threadgroup;
      b[t] = a[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      float s = b[63 - t] + b[t];
      simdgroup_barrier(mem_flags::mem_threadgroup);
      o[i] = s;"""
    counts = count(source, mx.zeros((128,)), 128, 128)
    assert counts.threadgroup_bytes_written == 128 * 4
    assert counts.threadgroup_bytes_read == 2 * 128 * 4
    assert counts.barriers == 2
    assert counts.simdgroup_barriers == 4


def test_simd_operations_and_shuffles(count):
    source = "o[i] = simd_sum(a[i]) + simd_shuffle_xor(a[i], 1) + simd_max(a[i]);"
    counts = count(source, mx.zeros((64,)), 64, 64)
    assert counts.simd_operations == 2 * 3
    assert counts.shuffles == 2


def test_matrix_flops(count):
    source = """
      simdgroup_float8x8 x, y, z = simdgroup_float8x8(0);
      simdgroup_load(x, a);
      simdgroup_load(y, a);
      for (int k = 0; k < 3; k++) simdgroup_multiply_accumulate(z, x, y, z);
      simdgroup_store(z, o);"""
    counts = count(source, mx.zeros((64,)), 64, 32, threadgroup=(32, 1, 1))
    assert counts.matrix_flops == 3 * 2 * 8**3
    assert counts.matrix_operations == 3 + 3
    assert counts.written["o"] == Bytes(256, 256, 256)


def test_atomics(count, metal_sim):
    kernel = metal_sim.metal_kernel(
        "probe",
        [],
        ["o"],
        "atomic_fetch_add_explicit(&o[0], 1u, memory_order_relaxed);",
        atomic_outputs=True,
    )
    kernel(
        inputs=[],
        output_shapes=[(1,)],
        output_dtypes=[mx.uint32],
        grid=(48, 1, 1),
        threadgroup=(16, 1, 1),
        init_value=0,
    )
    counts = metal_sim.launches[-1].counts
    assert counts.atomics == 48
    assert counts.written["o"] == Bytes(48 * 4, 3 * 4, 4)


def test_what_the_optimizer_removes_is_not_counted(count):
    counts = count("float x = a[i];\no[i] = a[i] + a[i];", mx.zeros((64,)), 64, 64)
    assert counts.read["a"].by_lane == 256
