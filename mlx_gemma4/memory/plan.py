"""Whether a model and a conversation fit, and what would help if they do not.

A checkpoint that does not fit is refused before it is loaded, with the numbers and the way out:
past its limit a Mac swaps, and one token takes minutes.  `bounded` then holds MLX to the plan.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mlx_gemma4.config import TextConfig
from mlx_gemma4.errors import MemoryLimitError
from mlx_gemma4.memory.arrays import (
    CACHE_GROWTH,
    PREFILL_STEPS,
    Reading,
    cache_bytes,
    largest_array_bytes,
    workspace_bytes,
)
from mlx_gemma4.memory.machine import MemoryLimit, computes_on_cpu
from mlx_gemma4.memory.units import format_bytes

# Context that loading makes room for; a longer prompt is checked again when it is there.
DEFAULT_CONTEXT = 4096

# Of global layers' rows where memory is short; see `Reading`.
COMPACT_KV_BITS = 8

# Temporary memory of prefill that a chunk size is chosen for, unless less is there.
WORKSPACE_BYTES = 512 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """What a model with one conversation needs.

    Attributes:
        weights_bytes: Of all parameters.
        cache_bytes: Keys and values of `context_tokens` positions.
        workspace_bytes: Of temporary arrays while a chunk of the prompt is read, at most.
        context_tokens: Positions of prompt and answer.
        drafter_bytes: Parameters of a drafter.
        prefill_step_size: Positions of a chunk.
        largest_bytes: Of the largest temporary array.
        kv_bits: Of global layers' rows in the cache; see `Reading`.
    """

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    context_tokens: int
    drafter_bytes: int = 0
    prefill_step_size: int = PREFILL_STEPS[0]
    largest_bytes: int = 0
    kv_bits: int = 16

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes + self.drafter_bytes

    def __str__(self) -> str:
        """Return the sum as messages show it."""
        drafter = f"drafter {format_bytes(self.drafter_bytes)} + " if self.drafter_bytes else ""
        int8 = " in int8" if self.kv_bits == COMPACT_KV_BITS else ""
        return (
            f"{format_bytes(self.total_bytes)} (weights {format_bytes(self.weights_bytes)} + "
            f"{drafter}cache {format_bytes(self.cache_bytes)} for {self.context_tokens:,} tokens"
            f"{int8} + {format_bytes(self.workspace_bytes)} to work in)"
        )


def plan_memory(
    text: TextConfig,
    weights_bytes: int,
    context_tokens: int,
    item_bytes: int,
    reading: Reading | None = None,
    drafter_bytes: int = 0,
) -> MemoryPlan:
    """Return what the model needs for a conversation of `context_tokens` positions."""
    reading = reading or Reading()
    return MemoryPlan(
        weights_bytes,
        cache_bytes(text, context_tokens, item_bytes, reading.kv_bits, reading.kv_rows),
        workspace_bytes(text, context_tokens, item_bytes, reading),
        context_tokens,
        drafter_bytes,
        reading.prefill_step_size,
        largest_array_bytes(text, context_tokens, item_bytes, reading),
        reading.kv_bits,
    )


def choose_reading(
    text: TextConfig,
    weights_bytes: int,
    context_tokens: int,
    item_bytes: int,
    *,
    limit_bytes: int,
    reading: Reading | None = None,
    drafter_bytes: int = 0,
    workspace_limit_bytes: int = WORKSPACE_BYTES,
    may_shorten: bool = True,
    may_compact: bool = False,
) -> Reading:
    """Return the reading with the largest chunks whose temporary arrays fit.

    Arrays fit if they take `workspace_limit_bytes` at most, and what weights and cache leave of
    `limit_bytes`.  In a long context some are as long as the cache, whatever the chunk: then a
    quarter more than the least is taken too, since ever smaller chunks save ever less.  Rows become
    int8 only where they may, and no chunk size makes it fit otherwise.  Where nothing does, chunks
    are the first by the bound alone: `check_memory` then refuses.

    Args:
        text: Of the decoder.
        weights_bytes: Of all parameters in memory.
        context_tokens: Positions of prompt and answer.
        item_bytes: Of one activation.
        limit_bytes: For everything.
        reading: All but what is chosen: its chunks are the largest.
        drafter_bytes: Parameters of a drafter.
        workspace_limit_bytes: For temporary arrays.
        may_shorten: Whether the chunk size may be chosen.
        may_compact: Whether rows may be int8.
    """
    reading = reading or Reading()
    steps = [step for step in PREFILL_STEPS if may_shorten and step < reading.prefill_step_size]
    choices = [replace(reading, prefill_step_size=s) for s in (reading.prefill_step_size, *steps)]

    def plan_with(choice: Reading) -> MemoryPlan:
        return plan_memory(text, weights_bytes, context_tokens, item_bytes, choice, drafter_bytes)

    plans = [plan_with(choice) for choice in choices]
    if may_compact and (needed := min(plan.total_bytes for plan in plans)) > limit_bytes:
        compact = [replace(choice, kv_bits=COMPACT_KV_BITS) for choice in choices]
        compact_plans = [plan_with(choice) for choice in compact]
        if min(plan.total_bytes for plan in compact_plans) < needed:
            choices, plans = compact, compact_plans
    least = min(range(len(plans)), key=lambda index: plans[index].workspace_bytes)
    allowed_bytes = max(workspace_limit_bytes, plans[least].workspace_bytes * 5 // 4)
    fits_at_all = plans[least].total_bytes <= limit_bytes
    for choice, plan in zip(choices, plans, strict=True):
        if plan.workspace_bytes <= allowed_bytes and (
            plan.total_bytes <= limit_bytes or not fits_at_all
        ):
            return choice
    return choices[least]


def longest_context(
    text: TextConfig,
    weights_bytes: int,
    limit_bytes: int,
    item_bytes: int,
    reading: Reading | None = None,
    drafter_bytes: int = 0,
) -> int:
    """Return how many positions fit beside the weights, at most the model's context; 0 if none."""
    low, high = 0, text.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        plan = plan_memory(text, weights_bytes, middle, item_bytes, reading, drafter_bytes)
        if plan.total_bytes <= limit_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def check_memory(
    text: TextConfig,
    weights_bytes: int,
    context_tokens: int,
    *,
    item_bytes: int,
    limit: MemoryLimit,
    smaller: Mapping[str, int] | None = None,
    reading: Reading | None = None,
    drafter_bytes: int = 0,
    may_shorten: bool = False,
    has_rows: bool = False,
) -> MemoryPlan:
    """Return what the model needs, or refuse it.

    Args:
        text: Of the decoder.
        weights_bytes: Of all parameters in memory.
        context_tokens: Positions of prompt and answer.
        item_bytes: Of one activation.
        limit: What this machine can hold.
        smaller: Options that make the weights smaller, such as "--quantize 4", and to how many
            bytes.
        reading: How the prompt is read.
        drafter_bytes: Parameters of a drafter.
        may_shorten: Chunks of other ways may be shorter, if these need it.
        has_rows: There are rows in the cache already, which keep their bits.

    Raises:
        MemoryLimitError: It does not fit; the message has the sum, and what would fit.
    """
    reading = reading or Reading()

    def plan_with(weights: int, how: Reading) -> MemoryPlan:
        return plan_memory(text, weights, context_tokens, item_bytes, how, drafter_bytes)

    def bytes_with(weights: int, how: Reading) -> int:
        how = choose_reading(
            text,
            weights,
            context_tokens,
            item_bytes,
            limit_bytes=limit.limit_bytes,
            reading=how,
            drafter_bytes=drafter_bytes,
            may_shorten=may_shorten,
        )
        return plan_with(weights, how).total_bytes

    plan = plan_with(weights_bytes, reading)
    if plan.total_bytes <= limit.limit_bytes:
        return plan
    alternatives = {option: bytes_with(size, reading) for option, size in (smaller or {}).items()}
    for step in PREFILL_STEPS:
        if step < reading.prefill_step_size:
            shorter = plan_with(weights_bytes, replace(reading, prefill_step_size=step))
            if shorter.total_bytes <= limit.limit_bytes:
                alternatives[f"--prefill-step-size {step}"] = shorter.total_bytes
                break
    if reading.kv_bits != COMPACT_KV_BITS:
        compact = replace(reading, kv_bits=COMPACT_KV_BITS, copied_tokens=0)
        anew = "the conversation read anew with " if has_rows else ""
        option = f"{anew}--kv-bits {COMPACT_KV_BITS}"
        alternatives[option] = bytes_with(weights_bytes, compact)
    ways = [
        f"{option} ({format_bytes(total_bytes)} in all)"
        for option, total_bytes in alternatives.items()
        if total_bytes <= limit.limit_bytes
    ]
    shortest = min(PREFILL_STEPS[-1], reading.prefill_step_size)
    shorter = replace(reading, prefill_step_size=shortest) if may_shorten else reading
    context = longest_context(
        text, weights_bytes, limit.limit_bytes, item_bytes, shorter, drafter_bytes
    )
    if context >= CACHE_GROWTH:
        ways.append(f"a context of at most {context:,} tokens")
    ways.append("a smaller checkpoint, such as a 4-bit conversion")
    raise MemoryLimitError(
        f"this needs {plan}; {limit.source} {format_bytes(limit.limit_bytes)}; what would help: "
        f"{', or '.join(ways)}"
    )


@contextlib.contextmanager
def bounded(plan: MemoryPlan) -> Iterator[None]:
    """Hold MLX's CPU backend to a plan for as long as the `with` lasts.

    MLX launches operations ahead of those that run, as long as there is room: without a limit a
    prompt's temporary arrays are up to twice as large, for nothing.  Past the limit it waits for
    what is under way, so the limit is the plan less one array, the largest that may come then.
    What waiting costs a GPU is not known: there MLX's own limit stays.
    """
    import mlx.core as mx  # here, since planning itself needs no device

    if not computes_on_cpu():
        yield
        return
    before = mx.set_memory_limit(max(1, plan.total_bytes - plan.largest_bytes))
    try:
        yield
    finally:
        mx.set_memory_limit(before)
