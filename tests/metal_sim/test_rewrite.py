"""What becomes of Metal text before clang sees it."""

import pytest
from metal_sim.rewrite import rewrite
from metal_sim.signatures import KernelParameter, entry
from metal_sim.tokens import tokenize


def cpp(text: str, **options) -> str:
    return rewrite(text, strict=options.pop("strict", False), **options).text


@pytest.mark.parametrize(
    "text",
    [
        "int x = a->b + c::d<e<int>>(1.5e-3f) >> 2; // no comment left by the preprocessor",
        '#pragma once\n# 3 "x.h"\nchar c = \'\\\'\', *s = "a\\"b";\n',
        "x <<= 0x1F; y = .5h + 1e5 + 2.f;",
    ],
)
def test_tokens_are_the_text(text):
    assert "".join(tokenize(text)) == text


@pytest.mark.parametrize("strict", [True, False])
def test_lines_keep_their_numbers(strict):
    text = """
void f(device int* x
       [[buffer(0)]]) {
  threadgroup float b[4],
    c[2];
  MARK;
}
template [[host_name("a")]]
  void g<int>();
struct A { A() thread {}
  A()
  device {}
  int x;
};
MARK;
"""
    marks = [line for line, words in enumerate(text.split("\n")) if "MARK" in words]
    rewritten = cpp(text, strict=strict).split("\n")
    assert [line for line, words in enumerate(rewritten) if "MARK" in words] == marks


@pytest.mark.parametrize(
    ("metal", "expected"),
    [
        ("float4(a, b)", "::metal_sim::construct<float4>(a, b)"),
        ("metal::vec<T, 4>(0)", "::metal_sim::construct<metal::vec<T, 4>>(0)"),
        ("static_cast<float4>(x)", "::metal_sim::construct<float4>(x)"),
        ("{half(x), 1}", "{::metal_sim::construct<half>(x), 1}"),
        ("return bfloat16_t(x);", "return ::metal_sim::construct<bfloat16_t>(x);"),
        ("float4 (&x)[4];", "float4 (&x)[4];"),
        ("operator float4() const;", "operator float4() const;"),
        ("float4 f(int x);", "float4 f(int x);"),
        ("x * 0.5 + 1e-3 + 2.5f + 1.0h + 3", "x * 0.5f + 1e-3f + 2.5f + 1.0h + 3"),
        ("int n [[function_constant(7)]];", "int n  = 3;"),
        ("int n [[function_constant(8)]];", "int n  = 0;"),
        ("int f(int x [[buffer(0)]]);", "int f(int x );"),
        ("template f<int>(int);", ""),
    ],
)
def test_expressions(metal, expected):
    assert cpp(metal, function_constants={7: 3}) == expected


def test_threadgroup_variables():
    text = cpp("void f() { threadgroup float b[32], c[2][N]; threadgroup float* p = b; }")
    assert 'metal_sim_threadgroup_variable(0, sizeof(ThreadgroupVariable0), "b")' in text
    assert "typedef float ThreadgroupVariable1[2][N];" in text
    assert "threadgroup float* p = b;" in text


def test_only_address_spaces_apart():
    """Two definitions for Metal and for the strict pass; one for code that runs."""
    text = "int f(device int* x) { return 1; }\nint f(constant int* x) { return 1; }\n"
    assert cpp(text, strict=True) == text
    assert cpp(text).count("int f(") == 1
    methods = "struct A { A() thread {} A() device {} };"
    assert cpp(methods, strict=True).count("A() /*") == 1


def test_array_parameters_are_pointers_to_the_strict_pass():
    text = "void f(constant int x[2], int y);"
    assert cpp(text, strict=True) == "void f(constant int (*x), int y);"
    assert cpp(text) == text


def test_kernels_and_their_parameters():
    text = (
        "template <typename T, int N>\n[[kernel, max_total_threads_per_threadgroup(64)]] void a(\n"
        "  const device vec<T, 2>* x [[buffer(0)]],\n  constant int& n [[buffer(3)]],\n"
        "  uint3 p [[thread_position_in_grid]]) {}\nkernel void b() {}\nvoid c() {}"
    )
    kernels = rewrite(text, strict=False).kernels
    assert set(kernels) == {"a", "b"}
    assert kernels["a"] == (
        KernelParameter("const device vec<T, 2>* x", "buffer(0)"),
        KernelParameter("constant int& n", "buffer(3)"),
        KernelParameter("uint3 p", "thread_position_in_grid"),
    )
    called = entry("a<float, 4>", kernels["a"])
    assert (
        "a<float, 4>(metal_sim::BufferPointer{buffers[0]}, metal_sim::BufferReference{buffers[3]}, "
        "metal_sim::Position{place->position_in_grid});" in called
    )
