"""What somebody waits for who starts a program: imports, loading, and the first token."""

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_gemma4.api import load
from mlx_gemma4.bench.measure import QUESTION, Progress, measured, take_spans
from mlx_gemma4.bench.power import EnergyMeter, Span
from mlx_gemma4.bench.report import Measure, Row
from mlx_gemma4.errors import Gemma4Error
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.processor import Processor

_TIMEOUT_S = 1800


def measure_starts(
    name: str,
    load_options: dict[str, Any],
    rounds: int,
    progress: Progress,
    meter: EnergyMeter | None = None,
) -> Iterator[Row]:
    """Yield how long the command line takes; each sample is a process of its own.

    Args:
        name: Of the checkpoint.
        load_options: As `load` takes them, those that `generate` has too.
        rounds: Samples.
        progress: Called with what is going on.
        meter: Of energy, if it can be read.

    Raises:
        Gemma4Error: A process failed; the message is what it said.
    """
    options = [
        f"--{key.replace('_', '-')}={value}"
        for key, value in load_options.items()
        if value is not None
    ]
    ask = ["generate", "--model", name, "--max-tokens", "1", *options, QUESTION]
    cases: list[tuple[Measure, str, list[str]]] = [
        ("start", "--help", ["--help"]),
        ("first token", "cold", ask),
    ]
    for measure, case, arguments in cases:
        progress(f"{measure}, {case}")
        # -P: the folder that the user is in must not be one to import from.
        command = [sys.executable, "-P", "-m", "mlx_gemma4", *arguments]
        spans = take_spans(partial(_run, command), rounds)
        yield Row(measure, case, 0, 0, 1, "", **measured(spans, meter))


def load_model(
    name: str,
    load_options: dict[str, Any],
    rounds: int,
    progress: Progress,
    meter: EnergyMeter | None = None,
) -> tuple[Gemma4, Processor, Row]:
    """Return a model with all its parameters in memory, and how long that takes.

    The first time is not counted: it fills the system's cache of files, and may tune kernels.
    """
    spans: list[Span] = []
    model = processor = None
    for turn in range(rounds + 1):
        progress(f"load, round {turn} of {rounds}")
        model = processor = None  # before the next: two do not fit where one just does
        gc.collect()
        mx.clear_cache()
        start = time.perf_counter()
        model, processor = load(name, **load_options)
        mx.eval(model.parameters())
        spans.append((start, time.perf_counter()))
    assert model is not None
    assert processor is not None
    return model, processor, Row("load", "", 0, 0, 1, "", **measured(spans[1:], meter))


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Gemma4Error(
            f"a first token took more than {_TIMEOUT_S} s; take a smaller checkpoint"
        ) from None
    if result.returncode:
        silent = (
            f"mlx-gemma4 {command[4]} ended with exit code {result.returncode}; run it by itself"
        )
        lines = result.stderr.strip().splitlines() or [silent]
        raise Gemma4Error(lines[0].removeprefix("error: "))
