"""PromptCacheStore: what was read stays known, so that no prompt is read twice.

A store belongs to one model and is kept between requests.  Each is three steps:

    reading = store.fetch(inputs)     what of the prompt is known, and what remains to be read
    ... read `reading.remaining` into `reading.prompt_cache`; answer into `reading.tokens` ...
    store.insert(reading)             prompt and answer are known now

A prompt that goes on where another ended takes that one's rows over: nothing is copied.  One that
parts from it early goes its own way with a copy, and both stay, as far as the budget reaches.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_gemma4.cache import LayerCache, SlidingCache, global_caches
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.prompt_cache.keys import common_prefix, last_cut, prompt_keys, text_keys
from mlx_gemma4.prompt_cache.line import Line, Snapshot, count_bytes, thin_out
from mlx_gemma4.prompt_cache.stops import Spacing, snapshot_stops

# Beside the rows of the newest prompt, which reading it needs anyway: two or three snapshots of the
# 12B's rings, of 320 MiB each, and rows of 100,000 tokens.
MAX_BYTES = 2 << 30


class PromptArchive(Protocol):
    """Prompts that outlive the process; see `prompt_archive`.

    Attributes:
        notes: What could not be used, one line each.
    """

    notes: list[str]

    def load(self, keys: np.ndarray, known: int) -> Line | None:
        """Return the line from which most of `keys` is known, more than `known`, or None."""
        ...

    def partings(self, keys: np.ndarray) -> set[int]:
        """Return where stored prompts part from this one."""
        ...

    def save(self, lines: Sequence[Line]) -> None:
        """Write what is not written yet; the newest line comes last."""
        ...


@dataclass(frozen=True, eq=False)
class PromptReading:
    """A prompt to be read, of which a part may be known.

    Attributes:
        inputs: The whole prompt.
        prompt_cache: Holds the known part; the remaining one is to be read into it.
        cached_tokens: Positions that are known.
        stops: Where to halt in the remaining part, ascending, the last one its end; the prompt
            cache then is exactly there, and `take_snapshot` is called.
        tokens: The answer, which whoever generates it adds to.
    """

    inputs: ModelInputs
    prompt_cache: Sequence[LayerCache]
    cached_tokens: int
    stops: Sequence[int]
    _line: Line
    _store: "PromptCacheStore"
    _keys: np.ndarray
    _partings: Set[int]
    tokens: list[int] = field(default_factory=list)

    @property
    def remaining(self) -> ModelInputs:
        """What has to be read, at least one position."""
        return self.inputs.slice(self.cached_tokens, len(self.inputs))

    def take_snapshot(self) -> None:
        """Keep the rings as they are now."""
        # Where two prompts have parted a third one will.
        has_parted = self.prompt_cache[0].offset in self._partings
        self._line.add(Snapshot.take(self.prompt_cache, uses=int(has_parted)))
        self._store.shrink()


class PromptCacheStore:
    """Prompts that have been read with one model, under one budget of bytes.

    Not for several threads at once.  Several prompts may be read at the same time.

    Args:
        make_cache: Makes an empty prompt cache, `model.make_cache`.  Its bits are those of every
            prompt, also where nobody has settled them: prompts share rows.
        max_bytes: For snapshots and for rows of all prompts but the newest.
        turn_token_id: With which a turn begins, `tokenizer.special_id("sot_token")`.
        paragraph_token_id: After which a paragraph begins: of an empty line.
        spacing: How far apart snapshots are.
        archive: Where prompts are looked for that are not in memory.
    """

    def __init__(
        self,
        make_cache: Callable[[], Sequence[LayerCache]],
        *,
        max_bytes: int = MAX_BYTES,
        turn_token_id: int | None = None,
        paragraph_token_id: int | None = None,
        spacing: Spacing | None = None,
        archive: PromptArchive | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self._make_cache = make_cache
        self._turn_token_id = turn_token_id
        self._paragraph_token_id = paragraph_token_id
        self._spacing = spacing or Spacing()
        self._archive = archive
        self._lines: list[Line] = []  # the least recently used first

    def __len__(self) -> int:
        """Return the number of prompts that are known."""
        return len(self._lines)

    @property
    def nbytes(self) -> int:
        """Bytes that count against the budget."""
        snapshots = count_bytes(s for line in self._lines for s in line.snapshots)
        return snapshots + sum(line.nbytes for line in self._lines[:-1])

    def fetch(self, inputs: ModelInputs) -> PromptReading:
        """Return what is known of a prompt.

        Every reading must come back to `insert`, also one that was interrupted.

        Raises:
            PromptCacheError: The prompt is in a file that is damaged.
        """
        keys = prompt_keys(inputs)
        line, snapshot, cut = self._find(inputs, keys)
        if self._archive and (stored := self._archive.load(keys, cut)):
            self._lines.append(stored)
            line, snapshot, cut = self._find(inputs, keys)
        partings = self._partings(keys)
        if line is None:
            line = Line(keys[:0], list(self._make_cache()))
            for layer_cache in global_caches(line.prompt_cache):
                layer_cache.choose_bits(layer_cache.row_format.bits)
        else:
            line = self._go_on(line, snapshot, cut)
        line.is_lent = True
        self._touch(line)
        del snapshot  # rings that are also held elsewhere would be copied when they are written
        stops = snapshot_stops(
            inputs,
            cut,
            self._spacing,
            turn_token_id=self._turn_token_id,
            paragraph_token_id=self._paragraph_token_id,
            slack=_slack(line),
            partings=partings,
        )
        at_cut = [stop - cut for stop in stops]
        return PromptReading(inputs, line.prompt_cache, cut, at_cut, line, self, keys, partings)

    @contextmanager
    def open(self, inputs: ModelInputs) -> Iterator[PromptReading]:
        """Fetch what is known of a prompt, and insert it again at the end, whatever happens."""
        reading = self.fetch(inputs)
        try:
            yield reading
        finally:
            self.insert(reading)

    def insert(self, reading: PromptReading) -> None:
        """Keep a prompt that was read, wholly or up to where reading stopped, and its answer.

        Tokens beyond what the prompt cache has read do not matter; of an answer that is not in
        `reading.tokens` nothing is kept.
        """
        line = reading._line
        if line not in self._lines:
            raise ValueError("this reading has been inserted already, or is of another store")
        line.is_lent = False
        keys = np.concatenate([reading._keys, text_keys(reading.tokens)])
        offsets = {layer_cache.offset for layer_cache in line.prompt_cache}
        line.keys = keys[: min(offsets)]
        if len(offsets) > 1 or max(offsets) > len(keys):
            # Interrupted between two layers, or the answer is not known: back to what is certain.
            whole = [s for s in line.snapshots if s.offset <= min(offsets)]
            if not whole:
                self._lines.remove(line)
                return
            line.rewind(whole[-1], whole[-1].offset)
        if not len(line.keys):
            self._lines.remove(line)
            return
        mx.eval([layer_cache.state for layer_cache in line.prompt_cache])
        self._touch(line)
        self._absorb(line)
        self.shrink()

    def save(self) -> tuple[str, ...]:
        """Write to the archive what it does not have, if there is one; return what it has to say.

        Raises:
            PromptCacheError: It cannot be written; what was there stays.
        """
        if self._archive is None:
            return ()
        self._archive.save([line for line in self._lines if not line.is_lent])
        return tuple(self._archive.notes)

    def shrink(self) -> None:
        """Forget until the budget is kept: of old prompts first, and of each its root last."""
        for line in list(self._lines):
            for snapshot in thin_out(line.snapshots):
                if self.nbytes <= self.max_bytes:
                    return
                line.snapshots.remove(snapshot)
            if self.nbytes > self.max_bytes and not line.is_lent and line is not self._lines[-1]:
                self._lines.remove(line)

    def _find(
        self, inputs: ModelInputs, keys: np.ndarray
    ) -> tuple[Line | None, Snapshot | None, int]:
        """Return the line that knows most of a prompt, from where to go on, and how much it is."""
        best: tuple[Line | None, Snapshot | None, int] = (None, None, 0)
        least_lost = 0
        for line in reversed(self._lines):
            # One position is left to read: the next token's logits come from it.
            common = min(common_prefix(line.keys, keys), len(inputs) - 1)
            common = last_cut(inputs, common)
            for place in line.places():
                cut = min(common, place.offset)
                lost = len(line.keys) - cut
                if (cut, -lost) > (best[2], -least_lost) and place.is_trimmable(place.offset - cut):
                    best, least_lost = (line, place, cut), lost
        return best

    def _partings(self, keys: np.ndarray) -> set[int]:
        """Return where known prompts part from this one."""
        partings = self._archive.partings(keys) if self._archive else set[int]()
        for line in self._lines:
            common = common_prefix(line.keys, keys)
            if common < len(line.keys):
                partings.add(common)
        return partings

    def _go_on(self, line: Line, snapshot: Snapshot | None, cut: int) -> Line:
        """Return a line that ends at `cut`: this one, or a copy if it would lose too much."""
        assert snapshot is not None
        snapshot.uses += 1
        if line.is_lent or len(line.keys) - cut >= self._spacing.worth_keeping:
            line = line.fork()
            self._lines.insert(0, line)
        line.rewind(snapshot if snapshot in line.snapshots else None, cut)
        last = max((s.offset for s in line.snapshots), default=0)
        if cut - last >= self._spacing.worth_keeping:
            line.add(Snapshot.take(line.prompt_cache, uses=1))
        return line

    def _touch(self, line: Line) -> None:
        """Make a line the newest one."""
        if line in self._lines:
            self._lines.remove(line)
        self._lines.append(line)

    def _absorb(self, line: Line) -> None:
        """Drop prompts that a longer one contains; their snapshots are its own now."""
        for other in self._lines[:-1]:
            if not other.is_lent and common_prefix(other.keys, line.keys) == len(other.keys):
                for place in other.places():
                    line.add(place)
                self._lines.remove(other)


def _slack(line: Line) -> int:
    """Return how many positions before a snapshot can be reached from it."""
    rings = [c for c in line.prompt_cache if isinstance(c, SlidingCache)]
    return min((ring.capacity - ring.window for ring in rings), default=0)
