"""Line: a prompt that has been read, what every layer keeps of it, and snapshots on the way.

Global layers can be cut at any position, by their counter.  Rings cannot, so a snapshot holds those
of one position.  Nothing is copied for it: MLX writes into a copy of an array that is also held
elsewhere, so a snapshot costs its bytes when the rings are written next.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlx_gemma4.cache import LayerCache, SlidingCache

_Cache = TypeVar("_Cache", bound=LayerCache)


def fork_layer(layer_cache: _Cache) -> _Cache:
    """Return a cache that goes on from the same positions, and shares their arrays until then."""
    forked = copy.copy(layer_cache)
    for name, value in vars(forked).items():
        setattr(forked, name, _new_handle(value))
    return forked


def _new_handle(value: Any) -> Any:
    # Writing into an array changes what the object is, for all who hold the object.
    if isinstance(value, mx.array):
        return value[...]
    return [_new_handle(item) for item in value] if isinstance(value, list) else value


@dataclass(eq=False)
class Snapshot:
    """The rings of one position.

    Attributes:
        offset: Positions before it.
        rings: By layer index.
        uses: How often a prompt went on from here.
    """

    offset: int
    rings: dict[int, SlidingCache]
    uses: int = 0

    @classmethod
    def take(cls, prompt_cache: Sequence[LayerCache], uses: int = 0) -> "Snapshot":
        """Return a snapshot of where a cache is."""
        rings = {
            index: fork_layer(layer_cache)
            for index, layer_cache in enumerate(prompt_cache)
            if isinstance(layer_cache, SlidingCache)
        }
        return cls(prompt_cache[0].offset, rings, uses)

    @property
    def nbytes(self) -> int:
        """Bytes of all rings."""
        return sum(ring.nbytes for ring in self.rings.values())

    def is_trimmable(self, count: int) -> bool:
        """Whether the last `count` positions can be undone."""
        return all(ring.is_trimmable(count) for ring in self.rings.values())


@dataclass(eq=False)
class Line:
    """A prompt that has been read.

    Attributes:
        keys: [L, 2] uint64, what it is (`prompt_keys`); while it is lent, the part that is certain.
        prompt_cache: What the layers keep.
        snapshots: By ascending offset.
        is_lent: Somebody is reading on in `prompt_cache`: the positions of `keys` stay what they
            are, and what follows is not known yet.
        last_used: A count that grows.
    """

    keys: np.ndarray
    prompt_cache: list[LayerCache]
    snapshots: list[Snapshot] = field(default_factory=list)
    is_lent: bool = False
    last_used: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the layers, snapshots not included."""
        return sum(layer_cache.nbytes for layer_cache in self.prompt_cache)

    def places(self) -> list[Snapshot]:
        """Return every position from which the prompt can go on: the snapshots, and the end."""
        if self.is_lent or not len(self.keys) or self.find(len(self.keys)):
            return list(self.snapshots)
        return [*self.snapshots, Snapshot.take(self.prompt_cache)]

    def find(self, offset: int) -> Snapshot | None:
        """Return the snapshot of a position, if there is one."""
        return next((s for s in self.snapshots if s.offset == offset), None)

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; there is one of a position at most."""
        if snapshot.offset and not self.find(snapshot.offset):
            self.snapshots.append(snapshot)
            self.snapshots.sort(key=lambda s: s.offset)

    def rewind(self, snapshot: Snapshot | None, cut: int) -> None:
        """Go back to `cut`, with the rings of a snapshot there or not much later.

        Args:
            snapshot: None takes the line's own rings, as they are.
            cut: Positions that stay.
        """
        if snapshot is not None:
            for index, ring in snapshot.rings.items():
                self.prompt_cache[index] = fork_layer(ring)
        for layer_cache in self.prompt_cache:
            if undone := layer_cache.offset - cut:
                layer_cache.trim(undone)
        self.keys = self.keys[:cut]
        self.snapshots = [s for s in self.snapshots if s.offset <= cut]

    def fork(self) -> "Line":
        """Return a line of the same positions that goes its own way; snapshots are shared."""
        return Line(self.keys, [fork_layer(c) for c in self.prompt_cache], list(self.snapshots))


def thin_out(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return snapshots of one prompt in the order in which they can be spared.

    One is worth the tokens that would have to be read again without it, once and for every time
    that it was used.  The last, from which a conversation goes on, and the first, the root of all
    that goes on elsewhere, are spared at the end.
    """
    kept = sorted(snapshots, key=lambda s: s.offset)
    spared: list[Snapshot] = []
    while len(kept) > 2:
        saved = [
            (after.offset - before.offset) * (1 + after.uses) for before, after in pairwise(kept)
        ]
        spared.append(kept.pop(1 + int(np.argmin(saved[:-1]))))
    return spared + kept[::-1]


def count_bytes(snapshots: Iterable[Snapshot]) -> int:
    """Return the bytes of snapshots, of each once."""
    return sum(snapshot.nbytes for snapshot in {id(s): s for s in snapshots}.values())
