"""Whether a kernel is on, by what is known of it and what the user asks for: rules, no arrays."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlx_gemma4.errors import OptionError
from mlx_gemma4.kernels.tuning import Timing, is_faster, overall_gain
from mlx_gemma4.kernels.verdicts import Verdicts

VARIABLE = "MLX_GEMMA4_KERNELS"


@dataclass(frozen=True)
class Selection:
    """What MLX_GEMMA4_KERNELS asks for.

    Attributes:
        names: Kernels that may be on.
        is_asked: They are wanted even where they are slower.
    """

    names: frozenset[str]
    is_asked: bool = False


@dataclass(frozen=True)
class State:
    """What was decided about a kernel.

    Attributes:
        is_on: Whether it runs.
        reason: Why, in a few words.
        timings: A case each, where it was timed.
    """

    is_on: bool
    reason: str
    timings: tuple[Timing, ...] = ()

    @property
    def gain(self) -> float | None:
        """How many times faster than its definition it is; None if it was not timed."""
        return overall_gain(self.timings) if self.timings else None


def read_selection(known: Collection[str]) -> Selection:
    """Return what MLX_GEMMA4_KERNELS asks for: 0 none, 1 all, or names; by default the faster.

    Args:
        known: Names of all kernels.

    Raises:
        OptionError: It names no kernel.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if value in ("", "0", "1"):
        return Selection(frozenset(() if value == "0" else known), is_asked=value == "1")
    names = frozenset(name.strip() for name in value.split(",") if name.strip())
    if unknown := sorted(names.difference(known)):
        raise OptionError(
            f"{VARIABLE} names {unknown[0][:80]!r}; allowed are 0 (none), 1 (all), or some of "
            f"{', '.join(sorted(known))}, with commas between; correct or unset it"
        )
    return Selection(names, is_asked=True)


def decide(name: str, verdicts: Verdicts, sizes_key: str, wanted: Selection) -> State:
    """Return whether a kernel is on for a model.

    Args:
        name: Of the kernel.
        verdicts: Of the machine at hand.
        sizes_key: `Sizes.key` of the model.
        wanted: Overrules the timing, never the self-check.
    """
    timings = verdicts.timings.get(sizes_key, {}).get(name)
    timed = tuple(timings or ())
    if name not in wanted.names:
        return State(False, f"left out by {VARIABLE}", timed)
    if name not in verdicts.checks:
        return State(False, "not checked on this machine yet")
    if complaint := verdicts.checks[name]:
        return State(False, f"failed its self-check ({complaint})")
    if timings is None:
        return State(True, "passed its self-check; not timed for this model")
    if not timed:
        return State(False, "does not fit this model's sizes")
    if is_faster(timed):
        return State(True, "faster than plain MLX", timed)
    if wanted.is_asked:
        return State(True, f"slower than plain MLX, but asked for by {VARIABLE}", timed)
    return State(False, f"slower than plain MLX ({_worst(timed)})", timed)


def _worst(timings: Sequence[Timing]) -> str:
    worst = min(timings, key=lambda timing: timing.gain)
    return f"{worst.label}: {worst.gain:.2f}x"
