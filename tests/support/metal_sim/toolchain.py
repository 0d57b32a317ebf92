"""clang-19: found, called, and what it makes kept.

What is compiled lies in a folder of the user's cache, under a hash of everything that it depends
on.  A file is written under another name and then renamed, so that processes may share the folder.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from string import hexdigits

import mlx.core as mx

HERE = Path(__file__).resolve().parent
MLX_INCLUDE = Path(mx.__file__).resolve().parent / "include"
MLX_KERNELS = "mlx/backend/metal/kernels"

# Metal's headers, which kernels include: the simulator's own stands before every text already.
STANDARD_HEADERS = (
    *("array", "atomic", "common", "compute", "geometric", "integer", "limits", "logging"),
    *("math", "matrix", "numeric", "pack", "quadgroup", "relational", "simdgroup"),
    *("simdgroup_matrix", "stdlib", "type_traits", "types"),
)
# What compiled kernels depend on; the rest of the package only launches them.
COMPILING = (
    *("compile.py", "constructors.py", "overloads.py", "rewrite.py", "signatures.py"),
    *("threadgroup_variables.py", "tokens.py", "toolchain.py"),
)
PROCESSOR_FEATURES = {"avx2", "f16c", "fma"}  # those of x86-64-v3 that kernels use
DAYS_KEPT = 7


class CompileError(Exception):
    """What the compiler said."""


@cache
def compiler() -> str | None:
    """Return the path of clang++ 19: $CXX if that is one, or what is called so; None if neither."""
    for name in (os.environ.get("CXX", ""), "clang++-19"):
        path = shutil.which(name.split()[0]) if name.split() else None
        if path is None:
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if "clang version 19." in said.stdout:
            return path
    return None


def missing() -> str | None:
    """Say why kernels cannot be simulated here; None if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"the Metal simulator runs on Linux on x86-64, not {sys.platform} {platform.machine()}"
        )
    if compiler() is None:
        return "clang++-19 is neither installed nor $CXX: apt install clang-19"
    if shutil.which("addr2line") is None:
        return "addr2line is not installed: apt install binutils"
    processor = Path("/proc/cpuinfo").read_text()
    if absent := sorted(PROCESSOR_FEATURES - set(processor.split())):
        return f"the Metal simulator needs a processor with {', '.join(absent)}"
    return None


@cache
def cache_folder() -> Path:
    """Return the folder of what this version of the simulator has compiled."""
    parent = os.environ.get("METAL_SIM_CACHE")
    if parent is None:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        parent = Path(user) / "metal_sim"
    sources = [*sorted(HERE.glob("msl/*")), *sorted(HERE.glob("runtime/*"))]
    sources += [HERE / name for name in COMPILING]
    texts = [path.read_text() for path in sources if path.is_file()]
    folder = Path(parent) / digest_of(compiler_version(), version("mlx"), str(HERE), *texts)
    (folder / "include" / MLX_KERNELS).mkdir(parents=True, exist_ok=True)
    for name in STANDARD_HEADERS:
        write_whole(folder / "include" / f"metal_{name}", "#pragma once\n")
    # MLX gives bfloat the functions of <metal_math>; here it has them already.
    write_whole(folder / "include" / MLX_KERNELS / "bf16_math.h", "#pragma once\n")
    drop_old(folder)
    return folder


def drop_old(folder: Path) -> None:
    """Mark a folder as used, and remove those beside it that have not been for days."""
    os.utime(folder)
    for other in folder.parent.iterdir():
        is_ours = len(other.name) == len(folder.name) and set(other.name) <= set(hexdigits)
        if is_ours and time.time() - other.stat().st_mtime > DAYS_KEPT * 24 * 3600:
            shutil.rmtree(other, ignore_errors=True)


def compiler_version() -> str:
    """Return what the compiler says of itself."""
    return call_clang(["--version"]).stdout


def digest_of(*parts: str) -> str:
    """Return a name for these texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either not there or complete, whoever else writes it."""
    if path.exists():
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def call_clang(arguments: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the compiler on a text."""
    path = compiler()
    if path is None:
        raise RuntimeError(missing())
    return subprocess.run(
        [path, *arguments], input=text, capture_output=True, text=True, check=False
    )


def call_clang_into(path: Path, arguments: Sequence[str], text: str = "") -> None:
    """Run the compiler, and rename what it makes to `path` when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        result = call_clang([*arguments, "-o", str(made)], text)
        if result.returncode:
            raise CompileError(result.stderr)
        os.replace(made, path)


@cache
def runtime_path() -> Path:
    """Return the runtime's shared library, built if need be."""
    path = cache_folder() / "runtime.so"
    if not path.exists():
        sources = sorted(str(source) for source in (HERE / "runtime").glob("*.cpp"))
        flags = ["-std=c++20", "-O2", "-march=x86-64-v3", "-fPIC", "-shared"]
        call_clang_into(path, [*flags, "-fno-exceptions", "-fno-rtti", *sources])
    return path
