"""What a prompt is, position by position, so that two prompts can be told apart where they part.

Soft tokens of different pictures have the same ids, so they are known by their content.  A picture
is known as a whole, because its tokens see each other; of a sound each soft token is known by
itself: a sound that goes on for longer has the shorter one as its prefix.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from mlx_gemma4.inputs import ModelInputs, SoftTokenSpan

# Of a position: (token id, 0) for text, 127 bits of a hash for a soft token.
_KEY = 2
_SOFT = np.uint64(1 << 63)


def text_keys(input_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the keys of positions that hold text, [L, 2] uint64."""
    keys = np.zeros((len(input_ids), _KEY), np.uint64)
    keys[:, 0] = np.asarray(input_ids, np.int64).astype(np.uint64)
    return keys


def prompt_keys(inputs: ModelInputs) -> np.ndarray:
    """Return the keys of all positions, [L, 2] uint64: equal up to where prompts are the same."""
    keys = text_keys(inputs.input_ids)
    patch = frame = 0
    for span in inputs.spans:
        if span.is_block:
            keys[span.start : span.stop] = _block_key(inputs, span, patch)
            patch += span.length
        else:
            assert inputs.frames is not None
            rows = inputs.frames[frame : frame + span.length]
            keys[span.start : span.stop] = [_hash(span.modality.encode(), row) for row in rows]
            frame += span.length
    return keys


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many positions two prompts have in common, from their start.

    Args:
        a: [L, 2] uint64, from `prompt_keys`.
        b: The same of another prompt, of any length.
    """
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length


def last_cut(inputs: ModelInputs, position: int) -> int:
    """Return the last position up to `position` where a prompt may be cut: in no picture."""
    for span in inputs.spans:
        if span.is_block and span.start < position < span.stop:
            return span.start
    return position


def _block_key(inputs: ModelInputs, span: SoftTokenSpan, start: int) -> np.ndarray:
    assert inputs.patches is not None
    assert inputs.patch_positions is not None
    stop = start + span.length
    grid = inputs.patch_positions[start:stop].astype(np.int32)
    return _hash(span.modality.encode() + grid.tobytes(), inputs.patches[start:stop])


def _hash(kind: bytes, values: np.ndarray) -> np.ndarray:
    """Return the key of a soft token, [2] uint64, from what it is made of."""
    digest = hashlib.sha256(kind)
    digest.update(np.ascontiguousarray(values, np.float32).data)
    key = np.frombuffer(digest.digest(), "<u8", _KEY).astype(np.uint64)
    key[1] |= _SOFT
    return key
