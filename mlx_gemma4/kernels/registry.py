"""Which kernels are on, and why.

Without a Metal device none is.  With one, a kernel is on if it passed its self-check on this
machine and is not slower than its definition on this model's shapes; `prepare` finds both out on
the first start and reads them from a file on later ones.  MLX_GEMMA4_KERNELS overrules the timing,
never the check.  The last model that was prepared decides for the whole process.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_gemma4.kernels.decision import State, decide, read_selection
from mlx_gemma4.kernels.kernel import Kernel, Sizes
from mlx_gemma4.kernels.source import read_source
from mlx_gemma4.kernels.trial import try_kernels
from mlx_gemma4.kernels.verdicts import (
    Machine,
    Verdicts,
    cache_folder,
    hash_sources,
    verdict_files,
)

KERNELS: dict[str, Kernel] = {}

_states: dict[str, State] = {}
_forced: frozenset[str] | None = None


def register(kernel: Kernel) -> Kernel:
    """Add a kernel to `KERNELS`; the module of an operation does so when it is imported."""
    KERNELS[kernel.name] = kernel
    return kernel


def is_on(name: str) -> bool:
    """Whether a kernel runs now; cheap, since every launch asks."""
    if _forced is not None:
        return name in _forced
    state = _states.get(name)
    # A user may compute on the CPU of a machine that has a GPU, where no Metal kernel runs.
    return state is not None and state.is_on and mx.default_device().type == mx.gpu


def all_on() -> tuple[str, ...]:
    """Return the names of the kernels that run now."""
    return tuple(name for name in KERNELS if is_on(name))


def why(name: str) -> str:
    """Return in a few words why a kernel is on or off."""
    if _forced is not None:
        return "forced on" if name in _forced else "forced off"
    state = _states.get(name)
    return "no model was loaded yet" if state is None else state.reason


@contextmanager
def forced(*names: str) -> Iterator[None]:
    """Have exactly these kernels on, whatever the device and the verdicts: for tests.

    Raises:
        KeyError: There is no such kernel.
    """
    global _forced
    before = _forced
    _forced = frozenset(KERNELS[name].name for name in names)
    try:
        yield
    finally:
        _forced = before


def prepare(
    sizes: Sizes,
    *,
    tune: bool = True,
    thorough: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Decide which kernels are on for a model; without a Metal device, at no cost.

    What is not known of this machine is found out: the self-check of each kernel, then the times
    of kernel and definition on the model's shapes, for at most 20 s.  A kernel whose turn does not
    come in that time is on if it passed its check, and is timed at the next start.

    Args:
        sizes: Of the model.
        tune: Time what has not been timed; otherwise a kernel that passed its check is on.
        thorough: Check and time everything anew, with more samples and without a limit.
        progress: Called with (steps done, steps in all), only if there is something to find out.

    Returns:
        Notes, one line each: kernels that failed, and verdicts that were ignored or not kept.

    Raises:
        OptionError: MLX_GEMMA4_KERNELS names no kernel.
    """
    wanted = read_selection(KERNELS)
    machine = this_machine()
    if machine is None:
        _states.update(dict.fromkeys(KERNELS, State(False, absence())))
        return []
    verdicts, notes = Verdicts.read(machine, cache_folder())
    tried = try_kernels(
        [KERNELS[name] for name in sorted(wanted.names)],
        verdicts,
        sizes,
        # A kernel that the user asks for by name runs, however long it takes.
        tune=tune and (thorough or not wanted.is_asked),
        thorough=thorough,
        progress=progress,
    )
    if tried:
        try:
            verdicts.write()
        except OSError as error:
            notes.append(f"kernel verdicts cannot be kept ({error}); the next start checks anew")
    for name in sorted(KERNELS):
        _states[name] = decide(name, verdicts, sizes.key, wanted)
        if name in wanted.names and verdicts.checks.get(name):
            notes.append(f"kernel {name} is off, plain MLX runs instead: {_states[name].reason}")
    return notes


@dataclass(frozen=True)
class Report:
    """What is known of the kernels on this machine.

    Attributes:
        machine: What it holds for; None where no Metal kernel can run.
        path: Of the file of verdicts; None likewise.
        sizes_key: `Sizes.key` of the model whose timings count; empty if none was timed.
        states: By kernel.
        notes: Verdicts that are ignored, one line each.
    """

    machine: Machine | None
    path: Path | None
    sizes_key: str
    states: dict[str, State]
    notes: list[str]


def report(sizes: Sizes | None = None) -> Report:
    """Return what is known, without finding out anything.

    Args:
        sizes: Of the model whose timings count; None is the one that was timed last.

    Raises:
        OptionError: MLX_GEMMA4_KERNELS names no kernel.
    """
    wanted = read_selection(KERNELS)
    machine, names = this_machine(), sorted(KERNELS)
    if machine is None:
        return Report(None, None, "", dict.fromkeys(names, State(False, absence())), [])
    verdicts, notes = Verdicts.read(machine, cache_folder())
    key = sizes.key if sizes else next(reversed(verdicts.timings), "")
    others = [path.name for path in verdict_files(cache_folder()) if path != verdicts.path]
    if others:
        notes.append(
            "ignored, being of another chip, macOS, MLX, or version of the kernels: "
            f"{', '.join(others)}; mlx-gemma4 tune --reset removes them"
        )
    states = {name: decide(name, verdicts, key, wanted) for name in names}
    return Report(machine, verdicts.path, key, states, notes)


def this_machine() -> Machine | None:
    """Return what verdicts hold for; None where no Metal kernel can run."""
    if absence():
        return None
    parts: dict[str, str] = {}
    for kernel in KERNELS.values():
        parts |= {stem: read_source(stem).sha256 for stem in kernel.sources}
        # The launcher decides as much as the source does.
        module = kernel.launch.__module__
        with suppress(OSError, TypeError):  # an installation without sources
            parts[module] = inspect.getsource(sys.modules[module])
    return Machine.at_hand(hash_sources(parts))


def absence() -> str:
    """Return why no Metal kernel can run here; nothing if it can."""
    if not mx.metal.is_available():
        return "no Metal device"
    return "" if mx.default_device().type == mx.gpu else "MLX computes on the CPU"
