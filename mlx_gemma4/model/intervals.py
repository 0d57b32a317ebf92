"""Masks as intervals: the visible keys of every query are one run of positions [lo, hi].

Global layers are causal.  Sliding layers see (causal OR the same image) AND the window, where an
image, or one frame of a video, is a block; sound is causal.  A block is never cut between chunks,
so its interval is known from the chunk alone, whatever came before it.

A block of four (b) after two tokens of text, window 3:

          global              sliding
        t 1 . . . . . .     1 . . . . . .
        t 1 1 . . . . .     1 1 . . . . .
        b 1 1 1 . . . .     1 1 1 1 1 1 .
        b 1 1 1 1 . . .     . 1 1 1 1 1 .
        b 1 1 1 1 1 . .     . . 1 1 1 1 .
        b 1 1 1 1 1 1 .     . . . 1 1 1 .
        t 1 1 1 1 1 1 1     . . . . 1 1 1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlx_gemma4.inputs import SoftTokenSpan

ImageAttention = Literal["sliding", "all"]


@dataclass(frozen=True)
class Intervals:
    """First and last visible position of each query row, inclusive.

    Attributes:
        lo: [B, L] int32.
        hi: [B, L] int32.
    """

    lo: np.ndarray
    hi: np.ndarray


def interval_causal(offset: int, length: int) -> Intervals:
    """Return the intervals of a global layer: everything up to the query itself.

    Args:
        offset: Positions already in the cache.
        length: New positions, L.
    """
    hi = np.arange(offset, offset + length, dtype=np.int32)[None]
    return Intervals(np.zeros_like(hi), hi)


def interval_sliding(
    offset: int, length: int, window: int, spans: Sequence[SoftTokenSpan]
) -> Intervals:
    """Return the intervals of a sliding layer.

    The window bounds the past alone: in a block longer than the window, an early row sees all the
    later ones.

    Args:
        offset: Positions already in the cache.
        length: New positions, L.
        window: Positions that a row sees, itself included: `config.sliding_window`.
        spans: Soft tokens among the new positions, relative to `offset`.

    Source: transformers modeling_gemma4_unified.py, create_masks_for_vision_model.
    """
    causal = interval_causal(offset, length)
    lo = np.maximum(causal.hi - (window - 1), 0)
    hi = causal.hi.copy()
    for span in spans:
        if span.is_block:
            hi[:, span.start : span.stop] = offset + span.stop - 1
    return Intervals(lo, hi)


def interval_with_blocks(
    intervals: Intervals, offset: int, spans: Sequence[SoftTokenSpan]
) -> Intervals:
    """Return the intervals joined with the whole block of each row: `image_attention="all"`.

    The rule that the plain `forward` of transformers' Gemma4Unified applies to every layer, after
    the window: a row of an image sees all of it.

    Args:
        intervals: Of a global or sliding layer.
        offset: Positions already in the cache.
        spans: Soft tokens among the new positions, relative to `offset`.

    Source: transformers masking_utils.py, create_masks_for_generate.
    """
    lo, hi = intervals.lo.copy(), intervals.hi.copy()
    for span in spans:
        if span.is_block:
            rows = slice(span.start, span.stop)
            lo[:, rows] = np.minimum(lo[:, rows], offset + span.start)
            hi[:, rows] = np.maximum(hi[:, rows], offset + span.stop - 1)
    return Intervals(lo, hi)


def intervals_of(
    offset: int,
    length: int,
    window: int,
    spans: Sequence[SoftTokenSpan],
    image_attention: ImageAttention,
) -> dict[str, Intervals]:
    """Return the intervals of both layer types, by the names in `config.layer_types`."""
    intervals = {
        "full_attention": interval_causal(offset, length),
        "sliding_attention": interval_sliding(offset, length, window, spans),
    }
    if image_attention == "all":
        return {
            layer_type: interval_with_blocks(of_type, offset, spans)
            for layer_type, of_type in intervals.items()
        }
    return intervals
