"""How long a decoded token should take, from its bytes and launches: a prediction, not a measure.

    step = (matrices + sliding rows) / reading + global layers + launches * launch
    global layers = max(rows / reading, operations / arithmetic)

reading is `READING_SHARE` of the memory's bandwidth, arithmetic `ARITHMETIC_SHARE` of what the
cores can do.  A launch is what it costs beside the memory traffic of its neighbours: the least
certain number here, and taken to be the same on all chips.
"""

from dataclasses import dataclass

from mlx_gemma4.bench.chips import Chip
from mlx_gemma4.bench.roofline import (
    FormatOf,
    GlobalRows,
    attention_operations,
    global_bytes,
    sliding_bytes,
    weight_bytes,
)
from mlx_gemma4.config import TextConfig

# 530 of 614 GB/s on an M5 Max and 265 of 307 on an M5 Pro, as others have measured.
READING_SHARE = 0.86

# Of attention kernels on matrix instructions whose rows fill them, an estimate: 0.65 to 0.75.
ARITHMETIC_SHARE = 0.65

# A launch that waits for the one before it costs 5.2 us by itself (measured by others on another
# model); half of that is hidden behind work in flight.
LAUNCH_S = 2.6e-6


@dataclass(frozen=True)
class Step:
    """A decoded token.

    Attributes:
        weight_bytes: Of matrices.
        sliding_bytes: Of rows that sliding layers read.
        global_bytes: Of rows that global layers read.
        global_operations: Of their attention.
        launches: Of kernels.
    """

    weight_bytes: float
    sliding_bytes: float
    global_bytes: float
    global_operations: float
    launches: int

    @classmethod
    def of_model(
        cls,
        text: TextConfig,
        context: int,
        format_of: FormatOf,
        launches: int,
        rows: GlobalRows = "shared",
    ) -> "Step":
        """Return the step after `context` positions, with a cache in bfloat16.

        Args:
            text: Of the decoder.
            context: Positions that the token sees.
            format_of: How the matrix of each module is stored.
            launches: Counted by `benchmarks/launches.py`.
            rows: How a global layer keeps a position.
        """
        return cls(
            weight_bytes(text, format_of),
            sliding_bytes(text, context),
            global_bytes(text, context, rows=rows),
            attention_operations(text, window=0, context=context)[1],
            launches,
        )

    @property
    def read_bytes(self) -> float:
        """Bytes in all, by which the roofline divides."""
        return self.weight_bytes + self.sliding_bytes + self.global_bytes

    def predicted_s(self, chip: Chip) -> float:
        """Return the seconds that the step should take."""
        reading = READING_SHARE * chip.bandwidth
        arithmetic = ARITHMETIC_SHARE * chip.vector_tflops * 1e12
        attention_s = max(self.global_bytes / reading, self.global_operations / arithmetic)
        reading_s = (self.weight_bytes + self.sliding_bytes) / reading
        return reading_s + attention_s + self.launches * LAUNCH_S
