"""Sliding attention of one layer while a prompt is read: banded against the whole rectangle.

The regime is prefill in chunks of 2,048 positions at the 12B's sizes: 16 query heads on 8 key heads
of 256 dimensions, window 1,024.  A chunk and the window before it are 2,048 x 3,071 scores, a third
of which is visible.  The rectangle computes all of them; the band takes blocks of queries and, for
each, the keys that one of them sees.  Both are the product's own plain-MLX path on this device, in
one process, in turn.

    python benchmarks/bench_banded.py --tokens 2048 8192 32768 --runs 3
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from unittest import mock

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels import interval_attention as op
from mlx_gemma4.kernels.interval_attention import IntervalMask, interval_attention

HEADS, KEY_HEADS, DIMS, WINDOW, CHUNK = 16, 8, 256, 1024, 2048


def read_prompt(tokens: int) -> float:
    """Attend for a prompt, chunk by chunk; returns seconds, arrays not counted."""
    seconds = 0.0
    for start in range(0, tokens, CHUNK):
        length, past = min(CHUNK, tokens - start), min(start, WINDOW - 1)
        q = 0.1 * mx.random.normal((1, HEADS, length, DIMS))
        k, v = mx.random.normal((2, 1, KEY_HEADS, past + length, DIMS))
        mx.eval(q, k, v)
        hi = start + np.arange(length, dtype=np.int32)[None]
        lo = np.maximum(hi - WINDOW + 1, 0)
        keys = np.arange(start - past, start + length, dtype=np.int32)[None]
        begin = time.perf_counter()
        mx.eval(interval_attention(q, k, v, IntervalMask(lo, hi, keys)))
        seconds += time.perf_counter() - begin
    return seconds


def read_as_rectangle(tokens: int) -> float:
    with (
        mock.patch.object(op, "MIN_BLOCK_QUERIES", CHUNK),
        mock.patch.object(op, "SCORE_BLOCK_BYTES", 1 << 40),
    ):
        return read_prompt(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    rows = []
    read_prompt(CHUNK)
    for tokens in options.tokens:
        banded, rectangle = [], []
        for _ in range(options.runs):
            banded.append(read_prompt(tokens))
            rectangle.append(read_as_rectangle(tokens))
        ratios = [b / a for a, b in zip(banded, rectangle, strict=True)]
        row = {
            "tokens": tokens,
            "banded_s": round(statistics.median(banded), 3),
            "rectangle_s": round(statistics.median(rectangle), 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
        rows.append(row)
        print(
            f"{tokens:6} tokens: band {row['banded_s']:.2f} s, "
            f"rectangle {row['rectangle_s']:.2f} s, ratio {row['ratio']:.2f} {row['ratios']}",
            flush=True,
        )
    device = {"device": str(mx.default_device()), "machine": platform.machine()}
    print(json.dumps({"benchmark": "banded", **device, "mlx": version("mlx"), "rows": rows}))


if __name__ == "__main__":
    main()
