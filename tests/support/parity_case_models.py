"""The cases of parity_cases as models of this project, and their stored logits."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from closeness import Difference, difference
from parity_cases import Case, config_of, parameters_of

from mlx_gemma4.config import Config
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4

GOLDENS = Path(__file__).parent.parent / "data" / "parity"
# The bar of a random network, which amplifies rounding; twice that where decoding follows.
RELATIVE_RMS, RELATIVE_RMS_DECODED = 1e-4, 2e-4


def model_of(case: Case, **options) -> Gemma4:
    config = config_of(case.variant)
    weights = {
        name.removeprefix("model."): mx.array(array)
        for name, array in parameters_of(config, case.seed).items()
    }
    return Gemma4.from_weights(Config.from_dict(config), weights, **options)


def golden_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored positions [N] and their logits [N, V]."""
    with np.load(GOLDENS / f"{case.name}.npz", allow_pickle=False) as golden:
        return golden["positions"], golden["logits"]


def compare(logits: np.ndarray, case: Case) -> Difference:
    positions, expected = golden_of(case)
    return difference(logits[positions], expected)


def cached_logits(model: Gemma4, inputs: ModelInputs, chunk_size: int, decoded: int) -> np.ndarray:
    """Read a prompt in chunks, its last positions one at a time; return all logits [L, V]."""
    cache = model.make_cache()
    length = len(inputs) - decoded
    parts = inputs.slice(0, length).chunks(chunk_size)
    parts += [inputs.slice(i, i + 1) for i in range(length, len(inputs))]
    logits = [np.array(model(part, cache)) for part in parts]
    assert cache[0].offset == len(inputs)
    return np.concatenate(logits)
