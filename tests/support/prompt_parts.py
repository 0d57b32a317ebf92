"""Prompts put together from parts, and read with and without what is known of them."""

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np

from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.prompt_cache.store import PromptReading


def text(rng: np.random.Generator, count: int, vocab_size: int = 290) -> ModelInputs:
    """Return so many random tokens."""
    return ModelInputs.from_ids(rng.integers(30, vocab_size, count))


def picture(rng: np.random.Generator, columns: int, rows: int) -> ModelInputs:
    """Return a smooth random picture; all of one size have the same ids."""
    count = columns * rows
    y, x = np.divmod(np.arange(count, dtype=np.int32), columns)
    pixels = 0.6 * rng.random((count, 1)) + 0.4 * rng.random((count, 6912))
    return ModelInputs(
        np.array([25, *[26] * count, 27], np.int32),
        (SoftTokenSpan(1, count, Modality.IMAGE),),
        pixels.astype(np.float32),
        np.stack([x, y], axis=1),
    )


def sound(rng: np.random.Generator, count: int) -> ModelInputs:
    """Return a sound of so many frames."""
    return ModelInputs(
        np.array([28, *[29] * count, 28], np.int32),
        (SoftTokenSpan(1, count, Modality.AUDIO),),
        frames=rng.normal(0, 0.2, (count, 640)).astype(np.float32),
    )


def join(*parts: ModelInputs) -> ModelInputs:
    """Return a prompt of several parts."""
    spans: list[SoftTokenSpan] = []
    start = 0
    for part in parts:
        spans += [SoftTokenSpan(s.start + start, s.length, s.modality) for s in part.spans]
        start += len(part)

    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        return np.concatenate(arrays) if arrays else None

    return ModelInputs(
        np.concatenate([part.input_ids for part in parts]),
        tuple(spans),
        joined("patches"),
        joined("patch_positions"),
        joined("frames"),
    )


def read(
    model: Gemma4, reading: PromptReading, step: int = 2048, until: int | None = None
) -> np.ndarray:
    """Read what remains of a prompt as prefill does; return the logits [L, V] of what was read.

    Args:
        model: With parameters loaded.
        reading: From `fetch`.
        step: Positions of a chunk at most.
        until: Halts after so many stops, as if interrupted there.
    """
    remaining = reading.remaining
    logits = []
    for start, stop in list(pairwise([0, *reading.stops]))[:until]:
        for chunk in remaining.slice(start, stop).chunks(step):
            logits.append(np.array(model(chunk, reading.prompt_cache)))
            mx.eval([layer_cache.state for layer_cache in reading.prompt_cache])
        reading.take_snapshot()
    return np.concatenate(logits)


def step_on(model: Gemma4, reading: PromptReading, tokens: Sequence[int]) -> np.ndarray:
    """Read tokens of an answer one at a time; return their logits [L, V]."""
    rows = [
        np.array(model.forward(mx.array([[token]]), [], (), reading.prompt_cache))[0]
        for token in tokens
    ]
    return np.concatenate(rows)
