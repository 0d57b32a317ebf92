"""How far a distortion moves the soft tokens, before any layer of the decoder sees them.

The distance of a soft token to that of the undistorted sample, over the latter's length: 0 is
unmoved, 1.4 is as far as two vectors that have nothing to do with each other.
"""

from typing import Any

import numpy as np

from benchmarks.frontend.axis import Axis, Level
from mlx_gemma4.inputs import ModelInputs

FLAT = 1e-6  # patches of one colour differ from their mean by less
QUIET = 0.1  # a frame's power in amplitude, as a share of the sound's loudest frame


def find_empty(inputs: ModelInputs) -> np.ndarray:
    """Return which patches [P] are of one colour, or which frames [F] are pauses."""
    if inputs.patches is not None:
        colours = inputs.patches.reshape(len(inputs.patches), -1, 3)
        return np.ptp(colours, axis=1).max(axis=1) < FLAT
    assert inputs.frames is not None
    loudness = np.sqrt(np.mean(inputs.frames**2, axis=1))
    return loudness < QUIET * loudness.max()


def soft_tokens(model: Any, inputs: ModelInputs) -> np.ndarray:
    """Return the soft tokens [M, D] of a prompt with one medium."""
    ((_, embedded),) = model.soft_tokens(inputs)
    return np.array(embedded, dtype=np.float32)


def measure_shift(
    model: Any, processor: Any, axis: Axis, task: str, level: Level, samples: int
) -> dict[str, float | None]:
    """Measure what a distortion does to soft tokens.

    Returns:
        The median shift of those with something in them ("filled") and of those without
        ("empty"), and the share of the latter that have nothing in them afterwards
        ("still empty"); None where there is none of a kind.
    """
    shifts: dict[bool, list[float]] = {False: [], True: []}
    still_empty: list[bool] = []
    for index in range(samples):
        before, after = (
            processor(question.prompt, **question.options)
            for question in (axis.ask(task, index, of, processor) for of in (None, level))
        )
        tokens, moved = soft_tokens(model, before), soft_tokens(model, after)
        # Another sample rate may add a frame that is empty.
        length = min(len(tokens), len(moved))
        was_empty, is_empty = find_empty(before)[:length], find_empty(after)[:length]
        still_empty += is_empty[was_empty].tolist()
        distance = np.linalg.norm(moved[:length] - tokens[:length], axis=1)
        size = np.linalg.norm(tokens[:length], axis=1)
        for kind, moved_by, of in zip(was_empty, distance, size, strict=True):
            if of > 0:  # digital silence is a vector of zeros
                shifts[bool(kind)].append(float(moved_by / of))
    figures = {
        "filled": np.median(shifts[False]) if shifts[False] else None,
        "empty": np.median(shifts[True]) if shifts[True] else None,
        "still empty": np.mean(still_empty) if still_empty else None,
    }
    return {name: None if of is None else round(float(of), 4) for name, of in figures.items()}
