"""A machine that seems to have an Apple GPU, and kernels that do as a test says."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes

SIZES = Sizes(
    dtype=mx.bfloat16,
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=256,
    num_global_key_value_heads=1,
    global_head_dim=512,
    global_rotated_dims=128,
    sliding_window=128,
)
CHIP = "Apple M9 Max"


def fake_kernel(
    name: str = "double",
    *,
    kernel: Callable[[mx.array], mx.array] = lambda x: x + x,
    kernel_s: float = 0.0,
    plain_s: float = 0.0,
    cases: int = 1,
) -> Kernel:
    """Return a kernel that doubles, or is said to.

    Args:
        name: Of the kernel.
        kernel: What the launch does.
        kernel_s: How long it waits first.
        plain_s: How long the definition waits first.
        cases: To be timed.
    """

    def launch(x: mx.array) -> tuple[mx.array, ...]:
        time.sleep(kernel_s)
        return (kernel(x),)

    def define(x: mx.array) -> tuple[mx.array, ...]:
        time.sleep(plain_s)
        return (2 * x,)

    def check_cases(dtype: mx.Dtype) -> list[Case]:
        return [Case("small", (mx.arange(1, 9).astype(dtype),))]

    def tune_cases(sizes: Sizes) -> list[Case]:
        x = mx.ones((sizes.hidden_size,), sizes.dtype)
        return [Case(f"case {index}", (x,)) for index in range(cases)]

    return Kernel(name, (), launch, define, check_cases, tune_cases)


def raises(_: mx.array) -> mx.array:
    """Do as a kernel does that Metal does not compile."""
    raise RuntimeError("[metal::Device] Unable to build metal library\nprogram_source:3: error")


def fake_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path, *kernels: Kernel) -> None:
    """Have an Apple GPU with these kernels alone, and verdicts in a folder, until the test ends.

    What a test patches itself, with the same `monkeypatch`, is then undone in the right order.
    """

    def device_info(_: Any = None) -> dict[str, Any]:
        return {"device_name": CHIP, "architecture": "applegpu_g19s"}

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", device_info)
    monkeypatch.setattr(registry, "KERNELS", {kernel.name: kernel for kernel in kernels})
    monkeypatch.setattr(registry, "_states", {})
    monkeypatch.setenv("MLX_GEMMA4_CACHE", str(folder))
    monkeypatch.delenv("MLX_GEMMA4_KERNELS", raising=False)
