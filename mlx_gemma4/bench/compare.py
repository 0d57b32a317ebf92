"""Two documents of `bench`, row by row; a comparison that would mislead is refused."""

from dataclasses import dataclass

from mlx_gemma4.bench.report import NOISE, Document, Row
from mlx_gemma4.errors import OptionError

# Bits per weight that are the same but for what a front end adds.
_SAME_BITS = 0.05
_SAME_MEMORY = 0.02
# What a document that does not say so was measured with: there was no choice.
_OF_CACHE = {"kv_bits": 16, "kv_rows": "shared"}


@dataclass(frozen=True)
class Change:
    """A measure in both documents."""

    first: Row
    second: Row

    @property
    def speedup(self) -> float:
        """How many times faster the second is, by medians."""
        return self.first.median_s / self.second.median_s

    @property
    def energy_ratio(self) -> float | None:
        """The second's energy over the first's, by medians; None where one was not read."""
        first_j, second_j = self.first.energy_j, self.second.energy_j
        return second_j / first_j if first_j and second_j is not None else None

    @property
    def is_clear(self) -> bool:
        """Whether no sample of one is within the samples of the other."""
        first, second = self.first.samples_s, self.second.samples_s
        return max(second) < min(first) or max(first) < min(second)

    @property
    def verdict(self) -> str:
        """What may be said, in a word."""
        if not self.is_clear:
            return "within noise"
        return "faster" if self.speedup > 1 else "slower"


@dataclass(frozen=True)
class Comparison:
    """What two documents have in common.

    Attributes:
        changes: In the order of the first.
        notes: What else differs, and what only one of them has, one line each.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def compare_documents(first: Document, second: Document, *, anyway: bool = False) -> Comparison:
    """Return how the second differs from the first.

    Args:
        first: Measured before.
        second: Measured after.
        anyway: Compare what is not the same; the differences are then notes.

    Raises:
        OptionError: Model, bits per weight, or machine are not the same; or nothing is in both.
    """
    differences = list_differences(first, second)
    if differences and not anyway:
        raise OptionError(
            f"these are not to be compared: {'; '.join(differences)}; measure the same model on "
            "the same machine, or give --anyway"
        )
    rows = {row.key: row for row in second.rows}
    changes = tuple(Change(row, rows[row.key]) for row in first.rows if row.key in rows)
    if not changes:
        raise OptionError(
            "no measure is in both files; give bench the same --prompt and --depth for both"
        )
    notes = [f"not the same: {difference}" for difference in differences]
    versions = {**first.machine.versions, **second.machine.versions}
    notes += [
        f"{name} {first.machine.versions.get(name)} and {second.machine.versions.get(name)}"
        for name in sorted(versions)
        if first.machine.versions.get(name) != second.machine.versions.get(name)
    ]
    if first.machine.state.power != second.machine.state.power:
        notes.append(f"power: {first.machine.state.power} and {second.machine.state.power}")
    if first.power and second.power and first.power.covers != second.power.covers:
        notes.append(f"energy is of {first.power.covers}, and of {second.power.covers}")
    copied = first.machine.copy_gb_per_s, second.machine.copy_gb_per_s
    if max(copied) > (1 + NOISE) * min(copied):
        notes.append(
            f"the machine itself was not as fast in both: it copied {copied[0]:.1f} and "
            f"{copied[1]:.1f} GB/s, and clear differences may be its own; measure again, in turns"
        )
    alone = len(first.rows) + len(second.rows) - 2 * len(changes)
    if alone:
        notes.append(f"rows in one of the files alone: {alone}")
    return Comparison(changes, tuple(notes))


def list_differences(first: Document, second: Document) -> list[str]:
    """Return what makes a comparison misleading, in a few words each."""
    one, other = first.model, second.model
    differences: list[str] = []
    if abs(one.bits_per_weight - other.bits_per_weight) > _SAME_BITS:
        differences.append(
            f"bits per weight {one.bits_per_weight:.2f} and {other.bits_per_weight:.2f}"
        )
    names = ("dtype", "num_parameters", "hidden_size", "num_hidden_layers", "vocab_size")
    for name in (*names, *_OF_CACHE):
        values = [getattr(model, name) or _OF_CACHE.get(name) for model in (one, other)]
        if values[0] != values[1]:
            differences.append(f"model.{name} {values[0]} and {values[1]}")
    for name in ("chip", "device", "gpu_cores", "cpu_cores", "blas"):
        values = getattr(first.machine, name), getattr(second.machine, name)
        if values[0] != values[1]:
            differences.append(f"machine.{name} {values[0]} and {values[1]}")
    memory = first.machine.memory_bytes, second.machine.memory_bytes
    if abs(memory[0] - memory[1]) > _SAME_MEMORY * max(memory):
        differences.append(f"memory {memory[0] / 1e9:.0f} and {memory[1] / 1e9:.0f} GB")
    return differences
