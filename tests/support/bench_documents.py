"""Documents of `bench` as a test wants them."""

from dataclasses import replace
from typing import Any

from mlx_gemma4.bench.facts import KernelFinding, KernelTiming, ModelFacts, Quality
from mlx_gemma4.bench.machine import Machine, State
from mlx_gemma4.bench.power import PowerFacts
from mlx_gemma4.bench.report import Document, Row

MACHINE = Machine(
    chip="Apple M4 Max",
    device="gpu",
    gpu_cores=40,
    cpu_cores=16,
    memory_bytes=64 << 30,
    system="macOS 26.1",
    versions={"python": "3.12.1", "mlx-gemma4": "0.1.0", "mlx": "0.32.4", "numpy": "2.3.0"},
    blas=None,
    copy_gb_per_s=470.0,
    matmul_tflops=14.5,
    state=State("mains", False, "no warning", 1.2),
)
MODEL = ModelFacts(
    num_parameters=12_000_000_000,
    bits_per_weight=4.55,
    stored_as="4-bit in groups of 64",
    recipe="q4",
    dtype="bfloat16",
    weights_bytes=6_800_000_000,
    token_bytes=6_700_000_000,
    hidden_size=3840,
    num_hidden_layers=48,
    vocab_size=262_144,
    sliding_window=1024,
    kv_bits=16,
    kv_rows="shared",
)
ROWS = (
    Row("load", "", 0, 0, 1, "", (2.0, 2.1, 2.2)),
    Row("prefill", "", 2048, 0, 2048, "tokens", (4.0, 4.1, 4.2), 0.01, 3.0, 7_000_000, 90, 100),
    Row("decode", "", 64, 2048, 64, "tokens", (1.0, 1.01, 1.02), 0.8, 0.1, 430_000_000),
)
POWER = PowerFacts("powermetrics", "CPU, GPU, and neural engine; no memory, no display", 2.5)
QUALITY = Quality(20, 0.01, 0.97, 5.5, None)
FINDINGS = (KernelFinding("sliding_decode", True, "faster", (KernelTiming("decode", 0.2, 0.1),)),)


def make_document(
    *, machine: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **parts: Any
) -> Document:
    """Return a document in which some parts are others."""
    values: dict[str, Any] = {"rows": ROWS, "quality": QUALITY, "kernels": FINDINGS, "notes": ()}
    return Document(
        date="2026-11-24T20:00+00:00",
        machine=replace(MACHINE, **(machine or {})),
        model=replace(MODEL, **(model or {})),
        **(values | parts),
    )
