"""Few combinations of many axes in which every two values of two axes meet."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Choice = dict[str, Any]


def cover_pairs(axes: Mapping[str, Sequence[Any]], cost: Callable[[Choice], float]) -> list[Choice]:
    """Return combinations that have every pair of values at least once, the same in every run.

    The one with the most pairs that none before has comes next, and of such the cheapest.

    Args:
        axes: Values of each axis.
        cost: Of a combination, such as the seconds that it takes.
    """
    names = list(axes)
    choices = list(product(*(range(len(axes[name])) for name in names)))
    two_axes = list(combinations(range(len(names)), 2))
    pairs = [{(a, b, choice[a], choice[b]) for a, b in two_axes} for choice in choices]
    found = [
        {name: axes[name][i] for name, i in zip(names, choice, strict=True)} for choice in choices
    ]
    order = sorted(range(len(choices)), key=lambda i: cost(found[i]))
    missing = set().union(*pairs)
    taken: list[Choice] = []
    while missing:
        best = max(order, key=lambda i: len(pairs[i] & missing))  # the first of the best
        missing -= pairs[best]
        taken.append(found[best])
    return taken
