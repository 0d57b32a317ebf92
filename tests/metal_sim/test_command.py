"""`python -m metal_sim KERNEL`, on kernels made for the purpose."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest
from metal_sim.__main__ import main


@dataclass(frozen=True)
class Case:
    label: str
    arguments: tuple[Any, ...]


class Doubling:
    """As much of a kernel's record as the command needs."""

    name = "doubling"

    def __init__(self, source: str):
        self.source = source

    def check_cases(self, dtype: mx.Dtype) -> list[Case]:
        return [Case("one row", (mx.arange(64).astype(dtype),))]

    def define(self, x: mx.array) -> tuple[mx.array, ...]:
        return (x * 2,)

    def launch(self, x: mx.array) -> tuple[mx.array, ...]:
        kernel: Any = mx.fast.metal_kernel("doubling", ["x"], ["o"], self.source)
        return tuple(
            kernel(
                inputs=[x],
                template=[("T", x.dtype)],
                grid=(64, 1, 1),
                threadgroup=(32, 1, 1),
                output_shapes=[(64,)],
                output_dtypes=[x.dtype],
            )
        )


RIGHT = Doubling("uint i = thread_position_in_grid.x;\no[i] = x[i] * T(2);")
WRONG = Doubling("uint i = thread_position_in_grid.x;\no[i] = x[i + 1] * T(2);")


def test_table(metal_sim, capsys):
    before = mx.fast.metal_kernel
    assert main(["doubling"], {"doubling": RIGHT}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["dtype", "case", "difference"]
    rows = {line.split()[0]: line.split()[3:] for line in lines[1:4]}
    assert rows["float32"] == ["0", "256", "256", "256", "0", "0", "0", "0"]
    assert rows["bfloat16"] == rows["float16"] == ["0", "128", "128", "128", "0", "0", "0", "0"]
    assert mx.fast.metal_kernel is before


def test_findings(metal_sim, capsys):
    assert main(["doubling"], {"doubling": WRONG}) == 1
    out = capsys.readouterr().out
    assert out.count("[device_bounds]") == 3
    assert "float16, one row: kernel doubling:\n  line 7: `o[i] = x[i + 1] * T(2);`" in out


def test_unknown_kernel(metal_sim, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["nothing"], {"doubling": RIGHT})
    assert raised.value.code == 2
    assert "doubling" in capsys.readouterr().err
