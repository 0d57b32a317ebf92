"""ModelInputs: the one contract between processing and model.

Token ids with placeholders where soft tokens go, the spans of those soft tokens, and the raw
pixels and samples that fill them.  NumPy only: nothing here touches the model's device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Self

import numpy as np


class Modality(StrEnum):
    """What a soft token was made of; the values are the words of the chat template."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


@dataclass(frozen=True)
class SoftTokenSpan:
    """A run of soft tokens: one image, one frame of a video, or one sound.

    Attributes:
        start: Position of the first soft token in `ModelInputs.input_ids`.
        length: Number of soft tokens.
        modality: Images and video frames see themselves in both directions, sounds do not.
    """

    start: int
    length: int
    modality: Modality

    @property
    def stop(self) -> int:
        """Position after the last soft token."""
        return self.start + self.length

    @property
    def is_block(self) -> bool:
        """Whether its tokens attend to each other in both directions on sliding layers."""
        return self.modality is not Modality.AUDIO


@dataclass(frozen=True)
class ModelInputs:
    """A prompt, or a part of one, as the model takes it.

    Attributes:
        input_ids: [L] int32; positions of soft tokens hold the placeholder of their modality.
        spans: The soft tokens, in ascending order and disjoint.
        patches: [P, 6912] float32 in 0..1, pixels of all images and video frames in span order;
            None without any.
        patch_positions: [P, 2] int32, (x, y) of each patch in its picture's grid.
        frames: [F, 640] float32, samples of all sounds in span order; None without any.
        notes: What was resized, resampled, or cut: one line each.
    """

    input_ids: np.ndarray
    spans: tuple[SoftTokenSpan, ...] = ()
    patches: np.ndarray | None = None
    patch_positions: np.ndarray | None = None
    frames: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check that spans, patches, and frames add up."""
        end = 0
        for span in self.spans:
            if span.start < end or span.length < 1:
                raise ValueError(f"soft-token spans must be ascending and disjoint: {self.spans}")
            end = span.stop
        if end > len(self.input_ids):
            raise ValueError(f"soft tokens end at {end}, the prompt at {len(self.input_ids)}")
        for name, rows, wanted in (
            ("patches", self.patches, self.num_patches),
            ("patch positions", self.patch_positions, self.num_patches),
            ("frames", self.frames, self.num_frames),
        ):
            have = 0 if rows is None else len(rows)
            if have != wanted:
                raise ValueError(f"{have} {name} for {wanted} soft tokens")

    def __len__(self) -> int:
        """Return the number of positions, L."""
        return len(self.input_ids)

    @property
    def num_patches(self) -> int:
        """Soft tokens that come from pixels, P."""
        return sum(span.length for span in self.spans if span.is_block)

    @property
    def num_frames(self) -> int:
        """Soft tokens that come from sound, F."""
        return sum(span.length for span in self.spans if not span.is_block)

    @classmethod
    def from_ids(cls, input_ids: Sequence[int] | np.ndarray) -> Self:
        """Return inputs of text alone."""
        return cls(np.asarray(input_ids, np.int32))

    def slice(self, start: int, stop: int) -> "ModelInputs":
        """Return positions start..stop as inputs of their own, starting at position 0.

        A sound may be cut between two of its soft tokens.  A picture may not, because its tokens
        see each other in both directions.

        Raises:
            ValueError: The cut goes through an image or a video frame.
        """
        spans: list[SoftTokenSpan] = []
        rows = {True: [0, 0], False: [0, 0]}  # is_block: rows before the slice, rows in it
        for span in self.spans:
            first, last = max(span.start, start), min(span.stop, stop)
            rows[span.is_block][0] += min(max(start - span.start, 0), span.length)
            if first >= last:
                continue
            if span.is_block and last - first != span.length:
                raise ValueError(
                    f"cannot cut at {start}..{stop}: the {span.modality} at "
                    f"{span.start}..{span.stop} must stay whole"
                )
            rows[span.is_block][1] += last - first
            spans.append(SoftTokenSpan(first - start, last - first, span.modality))

        def cut(array: np.ndarray | None, is_block: bool) -> np.ndarray | None:
            first, count = rows[is_block]
            return array[first : first + count] if array is not None and count else None

        return ModelInputs(
            self.input_ids[start:stop],
            tuple(spans),
            cut(self.patches, True),
            cut(self.patch_positions, True),
            cut(self.frames, False),
            self.notes,
        )

    def chunks(self, size: int) -> "list[ModelInputs]":
        """Cut the prompt into parts of at most `size` positions that keep every picture whole.

        A picture longer than `size` gets a longer chunk of its own.

        Raises:
            ValueError: `size` is not positive.
        """
        if size < 1:
            raise ValueError(f"chunk size must be at least 1, not {size}")
        bounds = [0]
        while bounds[-1] < len(self):
            start = bounds[-1]
            stop = min(start + size, len(self))
            for span in self.spans:
                if span.is_block and span.start < stop < span.stop:
                    stop = span.start if span.start > start else span.stop
            bounds.append(stop)
        return [self.slice(a, b) for a, b in pairwise(bounds)]
