"""Every check catches what it must, and says nothing of the legal twin."""

from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from metal_sim import MetalError, Simulator

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


class Probe(NamedTuple):
    """A kernel of 64 threads on input `a` of 100 floats, with output `o` of 64 floats."""

    source: str
    header: str = ""
    threads: int = 64
    threadgroup: int = 64
    options: dict[str, Any] = {}  # noqa: RUF012  of the call
    construction: dict[str, Any] = {}  # noqa: RUF012


def launch(simulator: Simulator, probe: Probe) -> mx.array:
    """Run a probe and return its output."""
    kernel = simulator.metal_kernel(
        "probe",
        ["a"],
        ["o"],
        "uint i = thread_position_in_grid.x;\n" + probe.source,
        header=probe.header,
        **probe.construction,
    )
    call: dict[str, Any] = {
        "inputs": [mx.arange(100, dtype=mx.float32)],
        "grid": (probe.threads, 1, 1),
        "threadgroup": (probe.threadgroup, 1, 1),
        "output_shapes": [(64,)],
        "output_dtypes": [mx.float32],
    }
    return kernel(**{**call, **probe.options})[0]


def shared(text: str) -> str:
    """Return a source with 64 floats of threadgroup memory."""
    return f"threadgroup float b[64];\n{text}"


# Check that speaks, words of its message, the kernel, and a twin that is legal.
PAIRS: dict[str, tuple[str, str, Probe, Probe]] = {
    "read past the end of an input": (
        "device_bounds",
        "read of 4 bytes at byte 400 of a, which has 400 bytes (index 100)",
        Probe("o[i] = a[i + 37];"),
        Probe("o[i] = a[i + 36];"),
    ),
    "read before the start of an input": (
        "device_bounds",
        "at byte -4 of a",
        Probe("o[i] = a[int(i) - 1];"),
        Probe("o[i] = i > 0 ? a[int(i) - 1] : 0;"),
    ),
    "read past the end whose value is not used": (
        "device_bounds",
        "index 100",
        Probe("float x = a[i + 90]; o[i] = i + 90 < 100 ? x : 0;"),
        Probe("o[i] = i + 90 < 100 ? a[i + 90] : 0;"),
    ),
    "write past the end of an output": (
        "device_bounds",
        "write of 4 bytes at byte 256 of o",
        Probe("o[i + 1] = 1; o[i] = 0;", threads=64),
        Probe("o[i] = 1;"),
    ),
    "write to an input": (
        "write_to_input",
        "write to input a[0]",
        Probe("((device float*)a)[i] = 1; o[i] = 0;"),
        Probe("o[i] = a[i];"),
    ),
    "index outside of a threadgroup array": (
        "array_bounds",
        "index 64 is outside of an array of type float[64]",
        Probe(shared(f"b[i + 1] = 1; {BARRIER} o[i] = b[i];")),
        Probe(shared(f"b[i] = 1; {BARRIER} o[i] = b[i];")),
    ),
    "pointer outside of a threadgroup array": (
        "threadgroup_bounds",
        "write of 4 bytes at byte 256 of b",
        Probe(
            shared(f"put(b + 1, i); {BARRIER} o[i] = b[i];"),
            "inline void put(threadgroup float* p, uint i) {\n  p[i] = 1;\n}\n",
        ),
        Probe(
            shared(f"put(b, i); {BARRIER} o[i] = b[i];"),
            "inline void put(threadgroup float* p, uint i) {\n  p[i] = 1;\n}\n",
        ),
    ),
    "index outside of a private array": (
        "array_bounds",
        "index 4 is outside of an array of type float[4]",
        Probe("float b[4];\nfor (int k = 0; k <= 4; k++) b[k] = k;\no[i] = b[i % 4];"),
        Probe("float b[4];\nfor (int k = 0; k < 4; k++) b[k] = k;\no[i] = b[i % 4];"),
    ),
    "private memory without end": (
        "stack_overflow",
        "private memory of more than 256 KB",
        Probe("float b[100000];\nfor (int k = 0; k < 100000; k++) b[k] = k;\no[i] = b[i];"),
        Probe("float b[1000];\nfor (int k = 0; k < 1000; k++) b[k] = k;\no[i] = b[i];"),
    ),
    "no barrier between simdgroups": (
        "threadgroup_race",
        "of another simdgroup, with no threadgroup_barrier",
        Probe(shared("b[i] = a[i];\no[i] = b[63 - i];")),
        Probe(shared(f"b[i] = a[i];\n{BARRIER}\no[i] = b[63 - i];")),
    ),
    "no second barrier in a loop": (
        "threadgroup_race",
        "after read by",
        Probe(
            f"""threadgroup float b[2];
            float s = 0;
            for (int k = 0; k < 3; k++) {{
              float v = simd_sum(a[i] + k);
              if (thread_index_in_simdgroup == 0) b[simdgroup_index_in_threadgroup] = v;
              {BARRIER}
              s += b[0] + b[1];
            }}
            o[i] = s;"""
        ),
        Probe(
            f"""threadgroup float b[2];
            float s = 0;
            for (int k = 0; k < 3; k++) {{
              float v = simd_sum(a[i] + k);
              if (thread_index_in_simdgroup == 0) b[simdgroup_index_in_threadgroup] = v;
              {BARRIER}
              s += b[0] + b[1];
              {BARRIER}
            }}
            o[i] = s;"""
        ),
    ),
    "two writers of threadgroup memory": (
        "threadgroup_race",
        "write of b[0]",
        Probe(shared(f"b[i % 32] = i; {BARRIER}\no[i] = b[i % 32];")),
        Probe(shared(f"if (i < 32) b[i] = i;\n{BARRIER}\no[i] = b[i % 32];")),
    ),
    "lockstep taken for granted": (
        "simdgroup_race",
        "of the same simdgroup, with no simdgroup_barrier",
        Probe(shared("b[i] = a[i];\no[i] = b[i ^ 1];")),
        Probe(
            shared("b[i] = a[i];\nsimdgroup_barrier(mem_flags::mem_threadgroup);\no[i] = b[i ^ 1];")
        ),
    ),
    "a simd operation taken for a barrier": (
        "simdgroup_race",
        "of the same simdgroup",
        Probe(shared("b[i] = a[i];\nfloat s = simd_sum(a[i]);\no[i] = b[i ^ 1] + s;")),
        Probe(shared("b[i] = a[i];\nfloat s = simd_sum(a[i]);\no[i] = b[i] + s;")),
    ),
    "a simdgroup barrier between simdgroups": (
        "threadgroup_race",
        "of another simdgroup",
        Probe(
            shared("b[i] = i;\nsimdgroup_barrier(mem_flags::mem_threadgroup);\no[i] = b[63 - i];")
        ),
        Probe(
            shared("b[i] = i;\nsimdgroup_barrier(mem_flags::mem_threadgroup);\no[i] = b[i ^ 31];")
        ),
    ),
    "a barrier of no memory": (
        "threadgroup_race",
        "of another simdgroup",
        Probe(shared("b[i] = i;\nthreadgroup_barrier(mem_flags::mem_none);\no[i] = b[63 - i];")),
        Probe(shared("threadgroup_barrier(mem_flags::mem_none);\nb[i] = i;\no[i] = b[i];")),
    ),
    "a barrier of device memory alone": (
        "threadgroup_race",
        "of another simdgroup",
        Probe(shared("b[i] = i;\nthreadgroup_barrier(mem_flags::mem_device);\no[i] = b[63 - i];")),
        Probe(
            shared(
                "b[i] = i;\nthreadgroup_barrier(mem_flags::mem_device | "
                "mem_flags::mem_threadgroup);\no[i] = b[63 - i];"
            )
        ),
    ),
    "a simdgroup barrier of no memory": (
        "simdgroup_race",
        "of the same simdgroup",
        Probe(shared("b[i] = a[i];\nsimdgroup_barrier(mem_flags::mem_none);\no[i] = b[i ^ 1];")),
        Probe(shared("b[i] = a[i];\nsimdgroup_barrier(mem_flags::mem_none);\no[i] = b[i];")),
    ),
    "threadgroup memory that nobody has written": (
        "uninitialised_threadgroup_read",
        "read of b[63], which nobody has written",
        Probe(shared(f"if (i < 60) b[i] = a[i];\n{BARRIER}\no[i] = b[63 - i];")),
        Probe(shared(f"b[i] = i < 60 ? a[i] : 0;\n{BARRIER}\no[i] = b[63 - i];")),
    ),
    "what an earlier threadgroup has left": (
        "uninitialised_threadgroup_read",
        "which nobody has written",
        Probe(shared(f"if (i < 32) b[i % 32] = 1;\n{BARRIER}\no[i] = b[i % 32];"), "", 64, 32),
        Probe(shared(f"b[i % 32] = 1;\n{BARRIER}\no[i] = b[i % 32];"), "", 64, 32),
    ),
    "two threads write one element": (
        "device_race",
        "write of o[0] after write by thread",
        Probe("o[i] = 1;\nif (i < 32) o[i / 2] = 2;"),
        Probe("o[i] = 1;\nif (i < 32) o[i] = 2;"),
    ),
    "two simdgroups write one element, with a barrier": (
        "device_race",
        "with no barrier that orders device memory",
        Probe(f"o[i] = 1;\n{BARRIER}\nif (i < 32) o[i + 32] = 2;"),
        Probe("o[i] = 1;\nthreadgroup_barrier(mem_flags::mem_device);\nif (i < 32) o[i + 32] = 2;"),
    ),
    "two threadgroups write one element": (
        "device_race",
        "of threadgroup number",
        Probe("o[i] = 1;\nif (i >= 32) o[i - 32] = 1;", "", 64, 32),
        Probe("o[i] = 1;", "", 64, 32),
    ),
    "a thread reads what another writes": (
        "device_race",
        "after",
        Probe("o[i] = o[i ^ 32] + 1;", options={"init_value": 0}),
        Probe(
            "float x = o[i ^ 32];\nthreadgroup_barrier(mem_flags::mem_device);\no[i] = x + 1;",
            options={"init_value": 0},
        ),
    ),
    "an output is read before it is written": (
        "uninitialised_device_read",
        "read of o[0], which nobody has written",
        Probe("o[i] = o[i] + 1;"),
        Probe("o[i] = o[i] + 1;", options={"init_value": 0}),
    ),
    "an output is not wholly written": (
        "unwritten_output",
        "16 of 256 bytes of output o were never written, the first at index 60",
        Probe("if (i < 60) o[i] = 0;"),
        Probe("if (i < 60) o[i] = 0;", options={"init_value": 0}),
    ),
    "counting without atomics": (
        "device_race",
        "o[0]",
        Probe("o[0] += 1;", options={"init_value": 0}),
        Probe(
            "atomic_fetch_add_explicit(&o[0], 1.0f, memory_order_relaxed);",
            options={"init_value": 0},
            construction={"atomic_outputs": True},
        ),
    ),
    "vector read off its alignment": (
        "misaligned",
        "read of 16 bytes at an address that is 4 bytes past a multiple of 16",
        Probe("o[i] = ((const device float4*)(a + 1))[i / 4].x;"),
        Probe("o[i] = ((const device float4*)(a + 4))[i / 4].x;"),
    ),
    "branches with a reduction each": (
        "divergence",
        "lanes 0x55555555 of simdgroup",
        Probe("float v = a[i];\nif (i % 2) v = simd_sum(v);\nelse v = simd_max(v);\no[i] = v;"),
        Probe("float v = a[i];\nif (i / 32) v = simd_sum(v);\nelse v = simd_max(v);\no[i] = v;"),
    ),
    "two calls on one line": (
        "divergence",
        "have parted",
        Probe("float v = a[i];\nv = i % 2 ? simd_sum(v) : simd_sum(v + 1);\no[i] = v;"),
        Probe("float v = a[i];\nv = simd_sum(i % 2 ? v : v + 1);\no[i] = v;"),
    ),
    "a loop that lanes leave at different times": (
        "divergence",
        "have parted",
        Probe(
            "float v = 0;\nfor (uint k = i; k < 80; k += 64) v += simd_sum(a[k]);\n"
            "o[i] = simd_max(v);"
        ),
        Probe(
            "float v = 0;\nfor (uint k = i; k < 96; k += 64) v += simd_sum(a[k]);\n"
            "o[i] = simd_max(v);"
        ),
    ),
    "a barrier that not all threads come to": (
        "barrier_divergence",
        "lanes 0xffffff00 of simdgroup 1 have returned",
        Probe(f"if (i < 40) {BARRIER}\no[i] = 1;"),
        Probe(f"{BARRIER}\no[i] = 1;"),
    ),
    "a return before a barrier": (
        "barrier_divergence",
        "have returned",
        Probe(f"o[i] = 0;\nif (i >= 40) return;\n{BARRIER}\no[i] = 1;"),
        # A reduction takes the lanes that there are, which Metal allows.
        Probe("o[i] = 0;\nif (i >= 40) return;\no[i] = simd_sum(1.0f);"),
    ),
    "two barriers for one": (
        "barrier_divergence",
        "not all threads come to one barrier",
        Probe(f"if (i < 32) {BARRIER} else {BARRIER}\no[i] = 1;".replace("; else", "; else ")),
        Probe(f"if (i < 64) {BARRIER}\no[i] = 1;"),
    ),
    "the value of a lane that has returned": (
        "inactive_source",
        "the value of lane 21, which has returned",
        Probe("o[i] = 0;\nif (i % 32 > 20) return;\no[i] = simd_shuffle_down(a[i], 16);"),
        Probe("o[i] = 0;\no[i] = simd_shuffle_down(a[i], 16);"),
    ),
    "a matrix without all lanes": (
        "divergence",
        "simdgroup_matrix",
        Probe(
            "o[i] = 0;\nif (i % 32 > 20) return;\nsimdgroup_float8x8 m;\nsimdgroup_load(m, a);",
        ),
        Probe("o[i] = 0;\nsimdgroup_float8x8 m;\nsimdgroup_load(m, a);"),
    ),
    "too much threadgroup memory": (
        "threadgroup_memory_size",
        "threadgroup memory of 36000 bytes, with b",
        Probe("threadgroup float b[9000];\nb[i] = 1;\no[i] = b[i];"),
        Probe("threadgroup float b[8192];\nb[i] = 1;\no[i] = b[i];"),
    ),
    "too many threads": (
        "threads",
        "1056 threads in a threadgroup; 1024 are allowed",
        Probe("o[i % 64] = 0;", threads=64, threadgroup=1056),
        Probe("o[i] = 0;", threads=64, threadgroup=512),
    ),
    "an empty grid": (
        "dimensions",
        "must be at least 1",
        Probe("o[i] = 0;", threads=0),
        Probe("o[i] = 0;"),
    ),
    "integer division by zero": (
        "integer_division",
        "integer division by zero",
        Probe("o[i] = 1 / (i / 64);"),
        Probe("o[i] = 1 / (i / 64 + 1);"),
    ),
    "a shift by all bits": (
        "shift",
        "shift by 32 bits",
        Probe("o[i] = 1u << (i / 2 + 1);"),
        Probe("o[i] = 1u << (i / 2);"),
    ),
    "a pointer without address space": (
        "compile",
        "device float const *",
        Probe("const float* p = a;\no[i] = p[i];"),
        Probe("const device float* p = a;\no[i] = p[i];"),
    ),
    "a reference without address space": (
        "compile",
        "no matching function",
        Probe("put(o[i], a[i]);", "inline void put(float& x, float y) { x = y; }\n"),
        Probe("put(o[i], a[i]);", "inline void put(device float& x, float y) { x = y; }\n"),
    ),
    "threadgroup memory passed as device memory": (
        "compile",
        "no matching function",
        Probe(
            shared("b[i] = 0;\no[i] = first(b + i);"),
            "inline float first(const device float* p) { return p[0]; }\n",
        ),
        Probe(
            shared("b[i] = 0;\no[i] = first(b + i);"),
            "inline float first(const threadgroup float* p) { return p[0]; }\n",
        ),
    ),
    "an assignment to a constant": (
        "compile",
        "not assignable",
        Probe("a[i] = 1;\no[i] = 0;"),
        Probe("o[i] = 1;"),
    ),
    "float into bfloat by itself": (
        "compile",
        "implicit conversion",
        Probe("bfloat x = a[i] * 2.0f;\no[i] = x;"),
        Probe("bfloat x = bfloat(a[i] * 2.0f);\no[i] = x;"),
    ),
    "a word that Metal has not": (
        "strict",
        "Metal has no `double`",
        Probe("o[i] = double(a[i]);"),
        Probe("auto x = 0.5;\nstatic_assert(sizeof(x) == 4);\no[i] = a[i] * x;"),
    ),
    "an ambiguous overload": (
        "compile",
        "ambiguous",
        Probe("o[i] = max(a[i], 0);"),
        Probe("o[i] = max(a[i], 0.0f);"),
    ),
    "an unknown name": (
        "compile",
        "undeclared identifier 'foo'",
        Probe("o[i] = foo(1);"),
        Probe("o[i] = abs(-1.0f);"),
    ),
    "a vector of too few components": (
        "compile",
        "a vector is made of exactly as many components",
        Probe("float4 v = float4(1, 2, 3);\no[i] = v.x;"),
        Probe("float4 v = float4(1, float2(2), 3);\no[i] = v.x;"),
    ),
    "a variable without a value": (
        "compile",
        "uninitialized",
        Probe("float x;\no[i] = x;"),
        Probe("float x = 0;\no[i] = x;"),
    ),
}


@pytest.mark.parametrize("label", PAIRS)
def test_caught(label, metal_sim):
    check, words, caught, _ = PAIRS[label]
    with pytest.raises(MetalError) as raised:
        launch(metal_sim, caught)
    found = [message for message in raised.value.messages if message.check == check]
    assert found, f"{check} says nothing, but: {raised.value}"
    assert any(words in message.text for message in found), str(raised.value)
    assert metal_sim.launches[-1].messages == raised.value.messages


@pytest.mark.parametrize("label", PAIRS)
def test_legal_twin_passes(label, metal_sim):
    launch(metal_sim, PAIRS[label][3])
    assert metal_sim.launches[-1].messages == ()


def test_message_names_kernel_line_and_thread(metal_sim):
    with pytest.raises(MetalError) as raised:
        launch(metal_sim, Probe("float x = 0;\no[i] = x + a[i + 37];"))
    message = raised.value.messages[0]
    lines = metal_sim.launches[-1].source.split("\n")
    assert raised.value.kernel == "probe"
    assert message.line is not None
    assert lines[message.line - 1] == message.source_line == "o[i] = x + a[i + 37];"
    assert "thread 63 (simdgroup 1, lane 31) of threadgroup (0, 0, 0)" in message.text
    assert f"line {message.line}: `o[i] = x + a[i + 37];`" in str(raised.value)


def test_line_in_a_function_of_the_header(metal_sim):
    header = "inline float get(const device float* p, uint i) {\n  return p[i + 37];\n}\n"
    with pytest.raises(MetalError, match=r"line 2: `return p\[i \+ 37\];`"):
        launch(metal_sim, Probe("o[i] = get(a, i);", header))


def test_many_threads_are_a_warning(metal_sim):
    launch(metal_sim, Probe("if (i < 64) o[i] = 0;", threads=1024, threadgroup=1024))
    (message,) = metal_sim.launches[-1].messages
    assert not message.is_error
    assert "more than 512 are refused by some chips" in message.text


def test_output_that_depends_on_the_order(metal_sim):
    """Relaxed atomics are no race, but who comes first is chance."""
    probe = Probe(
        "threadgroup atomic_uint n;\n"
        "if (i == 0) atomic_store_explicit(&n, 0u, memory_order_relaxed);\n"
        f"{BARRIER}\n"
        "o[i] = atomic_fetch_add_explicit(&n, 1u, memory_order_relaxed);"
    )
    with pytest.raises(MetalError, match=r"depends on the order .*\[order\]"):
        launch(metal_sim, probe)
    metal_sim.orders = 1
    assert mx.sort(launch(metal_sim, probe)).tolist() == list(range(64))


def test_orders_differ_and_repeat(metal_sim):
    """A seed shuffles lanes, simdgroups and threadgroups, the same way every time."""
    metal_sim.mode = "run"
    probe = Probe(
        "o[i] = atomic_fetch_add_explicit((device atomic_uint*)&o[63], 1u, memory_order_relaxed);",
        threads=62,
        threadgroup=31,
        options={"init_value": 0},
    )
    seen = []
    for seed in (0, 1, 1, 2):
        metal_sim.seed = seed
        seen.append(launch(metal_sim, probe)[:62].tolist())
    assert seen[0] == list(range(62))
    assert seen[1] == seen[2]
    assert len({tuple(order) for order in seen}) == 3
    assert all(sorted(order) == list(range(62)) for order in seen)


def test_run_mode_faults_at_the_end_of_a_buffer(metal_sim):
    """Without checks too, a page that is not there ends every buffer."""
    metal_sim.mode = "run"
    with pytest.raises(MetalError, match=r"line 6: .*\n.* of a, which has 400 bytes"):
        launch(metal_sim, Probe("o[i] = a[i + 60];"))


def test_run_mode_survives_a_wild_pointer(metal_sim):
    metal_sim.mode = "run"
    with pytest.raises(MetalError, match="access to memory that is no buffer's"):
        launch(metal_sim, Probe("o[i] = *(const device float*)(64 + 4 * i);"))
    assert launch(metal_sim, Probe("o[i] = a[i];")).tolist() == list(range(64))


def test_private_memory_without_a_value_is_no_zero(metal_sim):
    """A private array has no shadow; what was not written is NaN, which the result shows."""
    output = launch(metal_sim, Probe("float b[2];\nb[i % 2] = 1;\no[i] = b[0];"))
    assert mx.isnan(output).tolist() == [bool(i % 2) for i in range(64)]


def test_all_findings_are_told(metal_sim):
    with pytest.raises(MetalError) as raised:
        launch(metal_sim, Probe(shared("if (i < 60) b[i] = 0;\nif (i < 63) o[i] = b[63 - i];")))
    checks = {message.check for message in raised.value.messages}
    assert {"uninitialised_threadgroup_read", "threadgroup_race", "unwritten_output"} <= checks
