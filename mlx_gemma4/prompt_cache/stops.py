"""Where a prompt is halted while it is read, so that its sliding state can be kept for later.

A sliding layer cannot be cut back further than its slack: whoever goes on from the middle of a
prompt needs the rings as they were there.  They are large, so they are kept where prompts part: at
the ends of turns, after media, before the last paragraph, which asks about what stands before it,
at the end of the prompt, where another prompt has parted before, and, in what is long otherwise,
every few thousand tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.prompt_cache.keys import last_cut


@dataclass(frozen=True)
class Spacing:
    """How far apart snapshots are, in tokens.

    Attributes:
        interval: Between two where no turn or medium ends.
        turns: Between two at the ends of turns and media, but for the last.
        worth_keeping: Fewer tokens are sooner read again than kept.
    """

    interval: int = 4096
    turns: int = 1024
    worth_keeping: int = 256


def snapshot_stops(
    inputs: ModelInputs,
    start: int,
    spacing: Spacing,
    *,
    turn_token_id: int | None,
    paragraph_token_id: int | None,
    slack: int,
    partings: Iterable[int] = (),
) -> list[int]:
    """Return where to halt, ascending positions in start..len(inputs), the last one its end.

    Args:
        inputs: The whole prompt.
        start: Positions that are known already.
        spacing: How far apart.
        turn_token_id: With which a turn begins; None if there are no turns.
        paragraph_token_id: After which a paragraph begins; None if that is not known.
        slack: Positions before a stop that can be reached from it.
        partings: Where other prompts have parted from this one.
    """
    end = len(inputs)
    places = {*_find(inputs, turn_token_id), *(span.stop for span in inputs.spans)}
    paragraphs = [place + 1 for place in _find(inputs, paragraph_token_id)]
    # From the end: what comes last is asked about next.  The last place that the end does not
    # reach is kept however near it is.
    least = start + spacing.worth_keeping
    stops = {end}
    for candidates, gap in (
        (places, spacing.turns),
        (paragraphs[-1:], spacing.turns),
        (partings, spacing.worth_keeping),
    ):
        nearest = end
        for place in sorted(set(candidates), reverse=True):
            if least <= place < end - slack and (nearest == end or nearest - place >= gap):
                stops.add(place)
                nearest = place
    for first, second in pairwise(sorted({start, *stops})):
        stops |= set(range(first + spacing.interval, second - spacing.turns, spacing.interval))
    return sorted({cut for stop in stops if (cut := last_cut(inputs, stop)) > start})


def _find(inputs: ModelInputs, token_id: int | None) -> list[int]:
    """Return the positions of a token."""
    return np.flatnonzero(inputs.input_ids == token_id).tolist() if token_id is not None else []
