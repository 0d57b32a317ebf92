"""What a conversion will take on this machine: memory by arithmetic, time by a sample."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gemma4.config import Config
from mlx_gemma4.convert import awq
from mlx_gemma4.convert.encode import BLOCK_BYTES, blocks_of, encode_block, read_plain_rows
from mlx_gemma4.convert.plan import ConversionPlan, PlannedParameter
from mlx_gemma4.convert.q4_0 import BLOCK_SIZE, fit_rows
from mlx_gemma4.kernels.gate_up_geglu import geglu

# Python, MLX, and NumPy without any tensor: measured on Linux with MLX 0.32.
_BASE_BYTES = 120 << 20
# Copies of a block while it is encoded: bytes, array, float32, codes.
_COPIES = 8
# What learning has besides: the processor, the model's code, one prompt's way through a layer.
# Measured in the same way.
_LEARNING_BASE_BYTES = 190 << 20
# Float32 copies of the largest matrix while a scale is tried: two scaled, rounded, dequantized.
_MATRICES = 6
# Weights of a sample: more than a core's cache, and a fraction of a second.
_SAMPLE_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Estimate:
    """What a conversion takes, about.

    Attributes:
        peak_bytes: Of memory.
        seconds: Of work in all, on a machine that does nothing else.
        learning_seconds: Of them, for scales that are learned; 0 where none are.
    """

    peak_bytes: int
    seconds: float
    learning_seconds: float = 0.0


def estimate(plan: ConversionPlan) -> Estimate:
    """Return what a conversion takes, from a sample of each kind of work.

    Raises:
        OptionError: The recipe learns scales, and there is nothing from which or for which.
        CheckpointError: The sample cannot be read, or lies on no grid where it should.
    """
    lengths = _prompt_lengths(plan)
    learning_s = _learning_seconds(plan, lengths) if lengths else 0.0
    return Estimate(_peak_bytes(plan, lengths), _encoding_seconds(plan) + learning_s, learning_s)


def peak_memory_bytes(plan: ConversionPlan) -> int:
    """Return the memory that a conversion takes, about; no tensor is read.

    Raises:
        OptionError: As `estimate`.
    """
    return _peak_bytes(plan, _prompt_lengths(plan))


def _prompt_lengths(plan: ConversionPlan) -> list[int]:
    """Return the tokens of each calibration prompt; none if the recipe learns nothing."""
    if plan.recipe.learned != "awq":
        return []
    awq.check_learnable(plan)
    return [len(inputs) for inputs in awq.calibration_inputs(plan)]


def _peak_bytes(plan: ConversionPlan, lengths: Sequence[int]) -> int:
    learning_bytes = _learning_bytes(plan, sum(lengths)) if lengths else 0
    return max(_encoding_bytes(plan), learning_bytes)


def _encoding_seconds(plan: ConversionPlan) -> float:
    """Return the time of reading, rounding, and checksums, from one block of each kind."""
    cores = os.cpu_count() or 1
    seconds = 0.0
    of_kind: dict[object, float] = {}
    for parameter in sorted(plan.parameters(), key=lambda p: -p.count):
        kind = (parameter.settings, parameter.stored_settings, parameter.rule)
        if kind not in of_kind:
            start, stop = next(blocks_of(parameter))
            rows = max(1, parameter.shape[0] if parameter.shape else 1)
            weights = max(1, parameter.count * (stop - start) // rows)
            spent = _time(lambda p=parameter, a=start, b=stop: encode_block(p, a, b))
            of_kind[kind] = spent / weights
            if parameter.rule and parameter.rule.grid and parameter.stored_settings is None:
                # Zeros, as an outline has them, lie on any grid and are found at once.
                of_kind[kind] = max(of_kind[kind], _fitting_seconds())
                # The grid's search is as much again, and on one core.
                of_kind[kind] *= 1 + cores
        seconds += of_kind[kind] * parameter.count
    block = bytes(min(plan.nbytes, BLOCK_BYTES))
    seconds += _time(lambda: hashlib.sha256(block)) * plan.nbytes / len(block)
    return seconds / cores


def _fitting_seconds() -> float:
    """Return the time for each weight of finding the grid of float16 scales, the harder ones."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-8, 8, (_SAMPLE_WEIGHTS // BLOCK_SIZE, BLOCK_SIZE))
    scales = rng.uniform(0.001, 0.01, (len(steps), 1)).astype(np.float16)
    rows = mx.array((scales.astype(np.float32) * steps).astype(np.float32)).astype(mx.bfloat16)
    mx.eval(rows)
    return _time(lambda: fit_rows(rows)) / rows.size


def _encoding_bytes(plan: ConversionPlan) -> int:
    in_memory = min(8, os.cpu_count() or 1) + 2
    blocks = min(in_memory * BLOCK_BYTES, plan.source_bytes)
    return _BASE_BYTES + _COPIES * blocks // 2


def _learning_seconds(plan: ConversionPlan, lengths: Sequence[int]) -> float:
    """Return the time that AWQ takes for prompts of these lengths.

    All prompts go through every layer once, and through its attention once more; each scale that is
    tried rounds the matrices that it is for, and multiplies `awq.MAX_ROWS` inputs with them.  A
    sample tells the time of a product and of rounding, for each weight, and that of an activation.
    On a CPU, on checkpoints with 0.6, 16, and 224 million weights a layer, this was 0.9 to 2.1
    times what learning took; without a fast BLAS, on the smallest alone, 0.9.
    """
    matrices = _layer_matrices(plan)
    sample = max(matrices, key=lambda p: (p.settings is not None, p.count))
    rows, columns = sample.shape
    stop = min(rows, max(1, _SAMPLE_WEIGHTS // columns))
    weight = read_plain_rows(sample, 0, stop).astype(mx.float32)
    inputs = mx.ones((awq.MAX_ROWS, columns))
    mx.eval(weight, inputs)
    product_s = _time(lambda: mx.eval(inputs @ weight.T)) / (weight.size * awq.MAX_ROWS)
    rounding_s = _time(lambda: mx.eval(awq.stored_matrix(sample, weight, None))) / weight.size
    activation_s = _time(lambda: mx.eval(geglu(inputs, inputs))) / inputs.size
    seconds, trials = 0.0, awq.NUM_STEPS + 1
    for parameter in matrices:
        module = parameter.path.rpartition(".")[2]
        passes = 2 if ".self_attn." in parameter.path else 1
        rounded, multiplied = _TIMES_TRIED[module]
        if parameter.settings is None or parameter.settings.mode != "affine":
            rounded = 0
        of_weight = passes * sum(lengths) * product_s
        of_weight += trials * (rounded * rounding_s + multiplied * awq.MAX_ROWS * product_s)
        activations = parameter.shape[0] * (sum(lengths) + trials * multiplied * awq.MAX_ROWS)
        seconds += parameter.count * of_weight + activations * activation_s
    text = Config.from_folder(plan.source.folder).text_config
    scores = 2 * text.num_hidden_layers * text.num_attention_heads * sum(L * L for L in lengths)
    return seconds + scores * activation_s


# In how many of AWQ's searches a matrix is rounded, and multiplied with.
_TIMES_TRIED = {
    "q_proj": (1, 1),
    "k_proj": (1, 1),
    "v_proj": (1, 1),
    "o_proj": (0, 0),
    "gate_proj": (1, 1),
    "up_proj": (2, 2),
    "down_proj": (1, 2),
}


def _learning_bytes(plan: ConversionPlan, num_tokens: int) -> int:
    """Return the memory that AWQ takes: a layer, the states, and the matrices of a trial."""
    matrices = _layer_matrices(plan)
    of_layer: dict[str, int] = {}
    for parameter in matrices:
        layer = ".".join(parameter.path.split(".")[:3])
        of_layer[layer] = of_layer.get(layer, 0) + parameter.count
    largest = max(parameter.count for parameter in matrices)
    hidden_size = next(p.shape[1] for p in matrices if p.path.endswith("up_proj"))
    weights = max(of_layer.values()) + _MATRICES * largest
    return _LEARNING_BASE_BYTES + 4 * (weights + num_tokens * hidden_size)


def _layer_matrices(plan: ConversionPlan) -> list[PlannedParameter]:
    return [
        parameter
        for parameter in plan.parameters()
        if parameter.path.startswith("language_model.layers.") and len(parameter.shape) == 2
    ]


def _time(work: Callable[[], object]) -> float:
    """Return the seconds of the faster of two runs: the first one warms up."""
    best = math.inf
    for _ in range(2):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
