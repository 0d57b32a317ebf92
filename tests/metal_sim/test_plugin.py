"""The plugin, the compiler's absence, and the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from metal_sim import toolchain

TESTS = """
import mlx.core as mx
import pytest

BEFORE = mx.fast.metal_kernel

def test_fixture(metal_sim):
    assert mx.fast.metal_kernel == metal_sim.metal_kernel
    assert metal_sim.mode == "check"

def test_restored():
    assert mx.fast.metal_kernel is BEFORE

@pytest.mark.metal_sim
def test_marker():
    pass
"""
# Apart from the others, since MLX needs a compiler as well to fuse operations on the CPU.
COMPILE_TEST = """
def test_compile_is_on_again():
    calls = []
    double = mx.compile(lambda x: calls.append(1) or x * 2)
    assert [double(mx.array(x)).item() for x in (1.0, 2.0, 3.0, 4.0)] == [2.0, 4.0, 6.0, 8.0]
    assert len(calls) < 4  # compiled, not called every time
"""
SUPPORT = Path(toolchain.__file__).parent.parent


def run_pytest(folder: Path, tests: str, **environment: str) -> str:
    """Run tests in a process of its own and return what it prints."""
    (folder / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "metal_sim.plugin", "--strict-markers", "-ra"]
    inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "CXX")}
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", "test_it.py"],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(SUPPORT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr


def test_fixture_and_marker(metal_sim, tmp_path):
    assert "4 passed" in run_pytest(tmp_path, TESTS + COMPILE_TEST)


def test_without_the_compiler(tmp_path):
    """Skipped with the reason, except on CI, where that would hide that nothing was checked."""
    reason = "clang++-19 is neither installed nor $CXX"
    skipped = run_pytest(tmp_path, TESTS, PATH="/nonexistent")
    assert "1 passed, 2 skipped" in skipped
    assert reason in skipped
    failed = run_pytest(tmp_path, TESTS, PATH="/nonexistent", CI="true")
    assert "1 passed, 2 errors" in failed
    assert reason in failed


def test_what_is_compiled_is_kept(metal_sim, tmp_path, monkeypatch):
    monkeypatch.setenv("METAL_SIM_CACHE", str(tmp_path))
    toolchain.cache_folder.cache_clear()
    try:
        folder = toolchain.cache_folder()
        assert folder.parent == tmp_path
        old, other = tmp_path / ("0" * len(folder.name)), tmp_path / "somebody-elses"
        for path in (old, other):
            path.mkdir()
            os.utime(path, (0, 0))
        toolchain.cache_folder.cache_clear()
        assert toolchain.cache_folder() == folder
        assert not old.exists()
        assert other.exists()
    finally:
        toolchain.cache_folder.cache_clear()


def test_a_file_is_complete_or_not_there(metal_sim, tmp_path):
    with pytest.raises(toolchain.CompileError):
        toolchain.call_clang_into(tmp_path / "x.o", ["-c", "-x", "c++", "-"], "int f( {")
    assert list(tmp_path.iterdir()) == []
    toolchain.call_clang_into(tmp_path / "x.o", ["-c", "-x", "c++", "-"], "int f() { return 1; }")
    assert [path.name for path in tmp_path.iterdir()] == ["x.o"]
