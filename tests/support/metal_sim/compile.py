"""Metal texts into libraries: preprocessed, rewritten, type-checked, compiled for one mode."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from metal_sim.diagnostics import FILE_NAME, compiler_messages, forbidden_words, with_source
from metal_sim.messages import Message, MetalError
from metal_sim.rewrite import rewrite
from metal_sim.signatures import entry
from metal_sim.toolchain import (
    HERE,
    MLX_INCLUDE,
    MLX_KERNELS,
    CompileError,
    cache_folder,
    call_clang,
    call_clang_into,
    digest_of,
    write_whole,
)

PREPROCESS = ["-E", "-std=c++17", "-nostdinc", "-w", "-D__METAL__=1", "-D__METAL_VERSION__=310"]
LANGUAGE = [
    "-std=c++17",
    "-march=x86-64-v3",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fno-delete-null-pointer-checks",
    "-Wno-reserved-user-defined-literal",  # `1.0h` is Metal's
    "-Wno-user-defined-literals",
    # Narrow types round after every operation.
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none"),
    *("-Xclang", "-fno-pch-timestamp"),
]
# A large private array is touched page by page, so that it meets the guard page of its stack.
DEBUGGABLE = ["-gline-tables-only", "-fstack-clash-protection", "-w"]
INSTRUMENTED = [
    "-fsanitize=thread",
    *("-mllvm", "-tsan-instrument-func-entry-exit=0"),
    *("-mllvm", "-tsan-instrument-atomics=0"),
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
]
# The optimizer removes accesses that do not matter to the result, which a check must see and a
# count must not.
MODE_FLAGS = {
    "run": ["-O2", "-ftrivial-auto-var-init=pattern"],
    "check": [
        "-O0",
        "-ftrivial-auto-var-init=pattern",
        *INSTRUMENTED,
        "-fsanitize=bounds,integer-divide-by-zero,shift-exponent",
        "-fsanitize-recover=all",
    ],
    "count": ["-O1", "-fno-vectorize", "-fno-slp-vectorize", *INSTRUMENTED],
}
STRICT_FLAGS = [
    "-DMSL_STRICT",
    "-Wno-everything",
    "-Wimplicit-float-conversion",
    "-Wuninitialized",
    "-Wsometimes-uninitialized",
    "-Werror=return-type",
]

# How a parameter's attribute is found in `metal_sim::ThreadPlace`.
POSITIONS = {
    "thread_position_in_grid": "position_in_grid",
    "thread_position_in_threadgroup": "position_in_threadgroup",
    "threadgroup_position_in_grid": "threadgroup_in_grid",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup": "threads_dispatched",
    "threads_per_grid": "threads_per_grid",
    "grid_size": "threads_per_grid",
    "threadgroups_per_grid": "threadgroups_per_grid",
}
NUMBERS = {
    "thread_index_in_threadgroup": "place->index_in_threadgroup",
    "thread_index_in_simdgroup": "place->lane",
    "thread_index_in_quadgroup": "place->lane % 4",
    "simdgroup_index_in_threadgroup": "place->simdgroup",
    "quadgroup_index_in_threadgroup": "place->index_in_threadgroup / 4",
    "simdgroups_per_threadgroup": "place->simdgroups",
    "dispatch_simdgroups_per_threadgroup": "place->simdgroups_dispatched",
    "quadgroups_per_threadgroup": "place->simdgroups * 8",
    "dispatch_quadgroups_per_threadgroup": "place->simdgroups_dispatched * 8",
    "threads_per_simdgroup": "metal_sim::kLanes",
    "thread_execution_width": "metal_sim::kLanes",
    "grid_origin": "metal_sim::Position{0}",
}


def preprocess(text: str, *, with_mlx: bool, macros: bool = False) -> str:
    """Expand a Metal text's macros and includes."""
    arguments = [*PREPROCESS, f"-I{cache_folder() / 'include'}"]
    if with_mlx:
        arguments.append(f"-I{MLX_INCLUDE}")
    if macros:
        arguments.append("-dD")
    result = call_clang([*arguments, "-x", "c++", "-"], text)
    if result.returncode:
        raise CompileError(result.stderr)
    # Flags of line markers tell of files entered and left, which make no sense in a part.
    return re.sub(r'^(# \d+ "[^"\n]*")[ \d]+$', r"\1", result.stdout, flags=re.M)


@cache
def prelude(flags: tuple[str, ...], *, with_utils: bool) -> Path:
    """Return a precompiled header of the standard library and, if asked, of MLX's utils.h.

    MLX puts utils.h before the text of every custom kernel.
    """
    name = f"prelude-{digest_of(*flags, str(with_utils))}"
    path = cache_folder() / f"{name}.pch"
    if path.exists():
        return path
    header = cache_folder() / f"{name}.h"
    text = f'#include "{HERE / "msl" / "metal_sim.h"}"\n'
    if with_utils:
        utils = f"{MLX_KERNELS}/utils.h"
        expanded = preprocess(f'#include "{utils}"\n', with_mlx=True, macros=True)
        # What comes before is the compiler's own macros.
        own = expanded[expanded.index(f'{utils}"') :].split("\n", 1)[1]
        text += rewrite(own, strict="-DMSL_STRICT" in flags).text
    write_whole(header, text)
    call_clang_into(path, [*flags, "-x", "c++-header", str(header)])
    return path


@dataclass(frozen=True)
class Source:
    """A kernel's text, and all that its compilation depends on.

    Attributes:
        name: The kernel's, as a person knows it.
        text: What a Metal compiler would get.
        function: The kernel's function in it.
        call: The function, with its template arguments.
        math_mode: MLX's.
        with_utils: Whether MLX's utils.h stands before the text; if not, it may include it.
        function_constants: Values by their index.
    """

    name: str
    text: str
    function: str
    call: str
    math_mode: str = "safe"
    with_utils: bool = True
    function_constants: Mapping[int, int | bool] = field(default_factory=dict)


def build(source: Source, mode: str, *, is_strict: bool) -> Path:
    """Compile a kernel for a mode into a library with one entry, and return its path.

    Args:
        source: What to compile.
        mode: "run", "check" or "count".
        is_strict: Whether to check its types with address spaces first.

    Raises:
        MetalError: The text does not compile, or breaks Metal's rules of address spaces.
    """
    # What a math mode means here is only whether products and sums may be fused.
    contract = "-ffp-contract=off" if source.math_mode == "safe" else "-ffp-contract=on"
    flags = (*LANGUAGE, *MODE_FLAGS[mode], *DEBUGGABLE, contract)
    constants = sorted(source.function_constants.items())
    digest = digest_of(
        source.text, source.call, str((source.with_utils, constants, is_strict)), *flags
    )
    path = cache_folder() / f"kernel-{digest}.so"
    if path.exists():
        return path
    try:
        compile_into(path, source, flags, is_strict=is_strict)
    except CompileError as error:
        found = compiler_messages(str(error)) or [Message("compile", str(error))]
        raise MetalError(source.name, with_source(found, source.text)) from None
    except MetalError as error:
        raise MetalError(source.name, with_source(error.messages, source.text)) from None
    return path


def compile_into(path: Path, source: Source, flags: tuple[str, ...], *, is_strict: bool) -> None:
    """Preprocess, check if asked, rewrite, and compile a kernel."""
    expanded = preprocess(f'#line 1 "{FILE_NAME}"\n{source.text}', with_mlx=not source.with_utils)
    if is_strict:
        check_types(expanded, source)
    rewritten = rewrite(expanded, strict=False, function_constants=source.function_constants)
    if source.function not in rewritten.kernels:
        known = ", ".join(sorted(rewritten.kernels))
        text = f"no kernel is called {source.function}; there are: {known}"
        raise MetalError(source.name, [Message("compile", text)])
    body = rewritten.text + entry(source.call, rewritten.kernels[source.function])
    header = prelude(flags, with_utils=source.with_utils)
    link = ("-shared", "-nostdlib", "-lm", "-fno-sanitize-link-runtime")
    # Text from a pipe is called `-` in debug information, wherever it says that it is from.
    name = ("-Xclang", "-main-file-name", "-Xclang", FILE_NAME)
    call_clang_into(
        path, [*flags, "-include-pch", str(header), "-x", "c++", "-", *link, *name], body
    )


def check_types(expanded: str, source: Source) -> None:
    """Compile with real address spaces, and for nothing else.

    Raises:
        MetalError: Something is not of Metal's language, though C++ allows it.
    """
    strict = (*LANGUAGE, *STRICT_FLAGS)
    header = prelude(strict, with_utils=source.with_utils)
    constants = source.function_constants
    rewritten = rewrite(expanded, strict=True, function_constants=constants)
    command = [*strict, "-include-pch", str(header), "-fsyntax-only", "-x", "c++", "-"]
    messages = forbidden_words(expanded)
    messages += compiler_messages(call_clang(command, rewritten.text).stderr)
    if messages:
        raise MetalError(source.name, messages)
