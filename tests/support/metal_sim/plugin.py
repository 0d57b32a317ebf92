"""The pytest plugin: the fixture `metal_sim`, and the marker of tests that need the compiler."""

import os
from collections.abc import Iterator

import mlx.core as mx
import pytest

from metal_sim.simulator import Simulator
from metal_sim.toolchain import missing


def require_compiler() -> None:
    """Skip the test if kernels cannot be compiled here; on CI that is a failure instead."""
    if reason := missing():
        is_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if is_ci else pytest.skip)(reason)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "metal_sim: runs Metal kernels on the CPU; needs clang-19")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test with the marker if kernels cannot be compiled here."""
    if item.get_closest_marker("metal_sim"):
        require_compiler()


@pytest.fixture
def metal_sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """Replace mx.fast.metal_kernel by a simulator, and return that.

    mx.compile is off while it does: a simulated kernel runs when it is called, on arrays that have
    values.
    """
    require_compiler()
    simulator = Simulator()
    monkeypatch.setattr(mx.fast, "metal_kernel", simulator.metal_kernel)
    mx.disable_compile()
    yield simulator
    if "MLX_DISABLE_COMPILE" not in os.environ:
        mx.enable_compile()
