"""Where a decoded token's time goes on a CPU: products of matrices, attention, and what is left.

The step is that of `generate`, on a cache of random rows.  Beside it, in turns with it:

    products   the same matrices times one row each, and nothing else: MLX gives them to BLAS, as
               every program on MLX does, so that no program on it can be faster than they are
    vectors    the same by NumPy, whose BLAS is asked for matrix times vector: MLX asks for matrix
               times matrix, for which each matrix is packed first
    attention  layers of each type, less their products

What is left is norms, rotations, and MLX's own work for each operation.

    LD_PRELOAD=.../libopenblas.so.0 python benchmarks/profile_decode.py build/mid --depth 128 8192
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from bench_memory import fill_cache
from peer_facts import describe_machine, name_commit

from mlx_gemma4 import load
from mlx_gemma4.bench.machine import measure_copy
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.qkv_norm_rope import pack_offsets
from mlx_gemma4.model.gemma4 import Gemma4

_TOKEN_ID = 100  # whatever it is, the work is the same


class Step:
    """A decoded token after `depth` positions, and parts of it.

    Args:
        model: In float32, with its parameters.
        depth: Positions in the cache.
    """

    def __init__(self, model: Gemma4, depth: int) -> None:
        self._model, self._depth = model, depth
        self._cache = model.make_cache(context_tokens=depth + 1)
        fill_cache(model, self._cache, depth)
        language_model = model.language_model
        self._layers = language_model.layers
        self._rows: dict[int, mx.array] = {}
        matrices = [language_model.embed_tokens.weight]
        for layer in self._layers:
            mlp = layer.mlp
            matrices += _matrices_of(layer.self_attn)
            matrices += [part.weight for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        self.matrices = matrices
        self._views = [
            (np.array(matrix, copy=False), np.ones(matrix.shape[1], np.float32))
            for matrix in matrices
        ]

    def run(self) -> None:
        """Decode a token, and undo it."""
        inputs = ModelInputs.from_ids(np.array([_TOKEN_ID], np.int32))
        mx.eval(self._model(inputs, self._cache), [cache.state for cache in self._cache])
        for cache in self._cache:
            cache.trim(1)

    def multiply(self, matrices: list[mx.array]) -> None:
        """Multiply each matrix [n, k] by a row of k."""
        for matrix in matrices:
            k = matrix.shape[1]
            if k not in self._rows:
                self._rows[k] = mx.random.normal((1, k))
                mx.eval(self._rows[k])
        mx.eval([self._rows[matrix.shape[1]] @ matrix.T for matrix in matrices])

    def multiply_vectors(self) -> None:
        """Multiply all matrices by NumPy, which reads them where they are."""
        for view, vector in self._views:
            np.dot(view, vector)

    def attend(self, indices: list[int]) -> None:
        """Run attention of some layers, all of one type, and undo it."""
        text = self._model.config.text_config
        first = 0
        if text.is_sliding(indices[0]):
            first = max(0, self._depth + 1 - text.sliding_window)
        x = mx.zeros((1, 1, text.hidden_size)) + 0.1
        ends = np.array([[first]], np.int32), np.array([[self._depth]], np.int32)
        keys = self._cache[indices[0]].key_positions(1)
        mask, offsets = IntervalMask(*ends, keys[None]), pack_offsets([self._depth])
        out = [
            self._layers[index].self_attn(x, mask, offsets, self._cache[index]) for index in indices
        ]
        mx.eval(out, [self._cache[index].state for index in indices])
        for index in indices:
            self._cache[index].trim(1)

    def matrices_of(self, indices: list[int]) -> list[mx.array]:
        """Return the matrices of some layers' attention."""
        return [part for index in indices for part in _matrices_of(self._layers[index].self_attn)]


def _matrices_of(attention: Any) -> list[mx.array]:
    names = ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj")
    return [attention[name].weight for name in names if name in attention]


def profile(model: Gemma4, depth: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of a step and of its parts, medians of rounds that take turns."""
    step, text = Step(model, depth), model.config.text_config
    types = {
        name: [i for i in range(text.num_hidden_layers) if text.is_sliding(i) == is_sliding]
        for name, is_sliding in (("sliding", True), ("global", False))
    }
    parts: dict[str, Callable[[], None]] = {
        "step": step.run,
        "products": lambda: step.multiply(step.matrices),
    }
    for name, indices in types.items():
        parts[f"{name} layers"] = lambda indices=indices: step.attend(indices)
        matrices = step.matrices_of(indices)
        parts[f"{name} products"] = lambda matrices=matrices: step.multiply(matrices)
    samples: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, run in parts.items():
            start = time.perf_counter()
            run()
            samples[name].append(1e3 * (time.perf_counter() - start))
    # Not in turns with the others: two BLAS would wait in each other's way, with all threads.
    time.sleep(1)
    samples["vectors"] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        step.multiply_vectors()
        samples["vectors"].append(1e3 * (time.perf_counter() - start))
    ms = {name: median(times[1:]) for name, times in samples.items()}
    attention = {name: ms[f"{name} layers"] - ms[f"{name} products"] for name in types}
    read_bytes = sum(matrix.nbytes for matrix in step.matrices)
    return {
        "depth": depth,
        "step_ms": ms["step"],
        "products_ms": ms["products"],
        "products_bytes": read_bytes,
        "products_gb_per_s": read_bytes / ms["products"] / 1e6,
        "vectors_gb_per_s": read_bytes / ms["vectors"] / 1e6,
        **{f"{name}_attention_ms": value for name, value in attention.items()},
        "rest_ms": ms["step"] - ms["products"] - sum(attention.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a checkpoint in float32, not quantized")
    parser.add_argument("--depth", type=int, nargs="+", default=[128, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write it all there")
    options = parser.parse_args()
    model, _ = load(options.model, dtype="float32")
    mx.eval(model.parameters())
    machine = describe_machine()
    copy_gb_per_s = measure_copy("cpu", os.cpu_count() or 1) / 1e9
    print(f"copying {copy_gb_per_s:.1f} GB/s; milliseconds:")
    print(
        f"{'depth':>7}{'step':>8}{'products':>10}{'share':>7}{'GB/s':>7}{'vectors':>9}{'sliding':>9}"
        f"{'global':>8}{'rest':>7}"
    )
    rows = []
    for depth in options.depth:
        row = profile(model, depth, options.rounds)
        rows.append(row)
        print(
            f"{depth:>7,}{row['step_ms']:>8.1f}{row['products_ms']:>10.1f}"
            f"{row['products_ms'] / row['step_ms']:>7.0%}{row['products_gb_per_s']:>7.1f}"
            f"{row['vectors_gb_per_s']:>9.1f}"
            f"{row['sliding_attention_ms']:>9.1f}{row['global_attention_ms']:>8.1f}"
            f"{row['rest_ms']:>7.1f}",
            flush=True,
        )
    if options.json:
        document = {
            "benchmark": "profile_decode",
            "machine": {**machine, "cores": os.cpu_count(), "copy_gb_per_s": copy_gb_per_s},
            "mlx": version("mlx"),
            "commit": name_commit(),
            "checkpoint": options.model.name,
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
