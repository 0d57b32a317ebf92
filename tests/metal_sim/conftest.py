"""The text of a kernel, as MLX itself writes it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

# The one of MLX, whatever a fixture puts in its place.
MLX_METAL_KERNEL = mx.fast.metal_kernel


@pytest.fixture
def mlx_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], str]:
    """Return a function that asks MLX for the text of a kernel.

    MLX writes the text where it builds the graph, and it may build one for export without a GPU:
    with `verbose`, it prints what it would compile.
    """

    def text_of(construction: Mapping[str, Any], call: Mapping[str, Any]) -> str:
        kernel: Any = MLX_METAL_KERNEL(**construction)
        arrays = [x for x in call["inputs"] if isinstance(x, mx.array)]

        def traced(*traced_arrays: mx.array) -> Any:
            rest = iter(traced_arrays)
            inputs = [next(rest) if isinstance(x, mx.array) else x for x in call["inputs"]]
            return kernel(**{**call, "inputs": inputs, "verbose": True})

        capfd.readouterr()
        mx.export_function(str(tmp_path / "kernel.mlxfn"), traced, *arrays)
        printed = capfd.readouterr().out
        head = f"Generated source code for `{construction['name']}`:\n```\n"
        assert printed.startswith(head)
        assert printed.endswith("\n```\n")
        return printed[len(head) : -len("\n```\n")]

    return text_of
