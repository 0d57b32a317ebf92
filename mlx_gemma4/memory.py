"""What a model needs and what a machine can hold: arithmetic on the config, no arrays.

A checkpoint that does not fit is refused before it is loaded, with the numbers and the way out:
past its limit a Mac swaps, and one token takes minutes.  `bounded` then holds MLX to the plan.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_gemma4.config import FULL_ATTENTION, QuantizationSettings, TextConfig
from mlx_gemma4.errors import MemoryLimitError

# Context that loading makes room for; a longer prompt is checked again when it is there.
DEFAULT_CONTEXT = 4096

# Temporary memory of prefill that a chunk size is chosen for, unless less is there.
WORKSPACE_BYTES = 512 << 20

# Chunk sizes to choose from: halves, since half a chunk takes about half the memory.
PREFILL_STEPS = (2048, 1024, 512, 256, 128, 64)

# As mlx_gemma4.cache and mlx_gemma4.kernels do it: positions by which caches grow, slots of a ring
# beyond the window, bytes of one block of attention scores, and its queries at least.
_CACHE_GROWTH = 256
_RING_SLACK = 16
_SCORE_BLOCK_BYTES = 64 << 20
_MIN_BLOCK_QUERIES = 128
_INTERVALS_PER_BLOCK = 8

# Numbers in a patch of 48 x 48 pixels.
_PATCH_DIM = 48 * 48 * 3

# Share of the memory of a machine without a GPU's own limit that other programs leave.
_USABLE_SHARE = 0.9
# What macOS lets the GPU use: 12.7 of 17.2 GB on a Mac with 16 GB, a little more on larger ones.
_MAC_SHARE = 0.74
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class MemoryLimit:
    """What this machine can hold.

    Attributes:
        limit_bytes: For weights, cache, and everything else.
        source: Where the number comes from, for messages.
    """

    limit_bytes: int
    source: str


@dataclass(frozen=True)
class Reading:
    """How a prompt is read, as far as memory depends on it.

    Attributes:
        prefill_step_size: Positions of a chunk.
        longest_picture: Soft tokens of the largest picture, which no chunk cuts.
        pixel_tokens: Soft tokens that come from pixels, in the whole prompt.
        is_cpu: Attention copies keys and values there, and its softmax is a float32 array.
    """

    prefill_step_size: int = PREFILL_STEPS[0]
    longest_picture: int = 0
    pixel_tokens: int = 0
    is_cpu: bool = True

    def chunk(self, context_tokens: int) -> int:
        """Return the positions of the longest chunk."""
        return min(context_tokens, max(self.prefill_step_size, self.longest_picture))


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
    """

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    context_tokens: int
    drafter_bytes: int = 0
    prefill_step_size: int = PREFILL_STEPS[0]
    largest_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes + self.drafter_bytes

    def __str__(self) -> str:
        """Return the sum as messages show it."""
        drafter = f"drafter {format_bytes(self.drafter_bytes)} + " if self.drafter_bytes else ""
        return (
            f"{format_bytes(self.total_bytes)} (weights {format_bytes(self.weights_bytes)} + "
            f"{drafter}cache {format_bytes(self.cache_bytes)} for {self.context_tokens:,} tokens + "
            f"{format_bytes(self.workspace_bytes)} to work in)"
        )


def format_bytes(count: int) -> str:
    """Return a size in decimal units, as shops and Hubs count: 23.9 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def parameter_bytes(
    shape: Sequence[int], settings: QuantizationSettings | None, item_bytes: int
) -> int:
    """Return the bytes of a parameter in memory.

    Args:
        shape: As if it were not quantized.
        settings: Of its quantization; None for a plain one.
        item_bytes: Of one activation, which scales and biases are cast to.
    """
    count = 1
    for size in shape:
        count *= size
    if settings is None:
        return count * item_bytes
    # Affine groups have a scale and a bias; the others a scale of one byte.
    group_bytes = 2 * item_bytes if settings.mode == "affine" else 1
    return count * settings.bits // 8 + count // settings.group_size * group_bytes


def cache_bytes(text: TextConfig, context_tokens: int, item_bytes: int) -> int:
    """Return the bytes of keys and values after `context_tokens` positions.

    On the 12B in bfloat16 this is 320 KiB a token for the sliding layers, up to their window, and
    10 KiB a token without end for the global ones.

    Args:
        text: Of the decoder.
        context_tokens: Positions in the cache.
        item_bytes: Of one activation: 2 for bfloat16, 4 for float32.
    """
    allocated = -(-context_tokens // _CACHE_GROWTH) * _CACHE_GROWTH
    total = 0
    for index in range(text.num_hidden_layers):
        heads = text.num_key_value_heads_of(index)
        if text.is_sliding(index):
            rows = min(allocated, text.sliding_window + _RING_SLACK)
            total += rows * heads * 2 * text.head_dim * item_bytes
            continue
        total += allocated * heads * _global_row_dims(text) * item_bytes
    return total


def workspace_bytes(
    text: TextConfig, context_tokens: int, item_bytes: int, reading: Reading | None = None
) -> int:
    """Return the bytes of temporary arrays while the prompt's last chunk is read, the dearest one.

    A layer is at its widest in one of four moments.  MLX launches some ten operations before the
    first of them is over, and what these make is there at once:

    * feed-forward: what attention has left (its output twice, joined and put in rows; five arrays
      of the residual stream's size), gate, up, and their product;
    * projections: q, k, and v in one, normed and rotated copies of them;
    * attention: queries, the output in parts and joined, and one and a half blocks of queries, as
      ten operations are of the seven that a block takes; what copies of keys and values the CPU
      makes for each, at a block's begin and end, are those of two;
    * pictures: their pixels twice.

    Masks of all blocks stand beside any of them, one byte for each query and key.
    """
    reading = reading or Reading()
    chunk = reading.chunk(context_tokens)
    stream = chunk * text.hidden_size * item_bytes
    layers = [
        _Attention.of(text, index, context_tokens, chunk, item_bytes, reading.is_cpu)
        for index in _one_of_each_type(text)
    ]
    queries = max(layer.query_bytes for layer in layers)
    moments = [5 * stream + 2 * queries + 3 * chunk * text.intermediate_size * item_bytes]
    for layer in layers:
        moments.append(2 * stream + 7 * layer.query_bytes // 2 + 3 * layer.key_value_bytes)
        attended = 3 * layer.query_bytes + layer.key_value_bytes + layer.cache_copy_bytes
        blocks = 3 * layer.block_bytes // 2 + 2 * layer.key_copy_bytes
        moments.append(2 * stream + attended + blocks)
    pixels = min(reading.pixel_tokens, chunk)
    moments.append(pixels * (8 * _PATCH_DIM + 3 * item_bytes * text.hidden_size) + stream)
    moments.append(4 * 4 * text.vocab_size)  # float32 logits, and what sampling makes of them
    return max(moments) + sum(layer.mask_bytes for layer in layers)


@dataclass(frozen=True)
class _Attention:
    """Arrays of a layer's attention while a chunk is read, in bytes.

    Attributes:
        query_bytes: Queries of the chunk; so much has its output.
        key_value_bytes: Rows of the chunk for the cache.
        cache_copy_bytes: Past rows joined with new ones, and the buffer that a longer one replaces.
        block_bytes: Everything that one block of queries makes, without the next.
        key_copy_bytes: Keys and values that a block copies.
        score_bytes: The largest of it.
        mask_bytes: Of all blocks.
    """

    query_bytes: int
    key_value_bytes: int
    cache_copy_bytes: int
    block_bytes: int
    key_copy_bytes: int
    score_bytes: int
    mask_bytes: int

    @classmethod
    def of(
        cls,
        text: TextConfig,
        index: int,
        context_tokens: int,
        chunk: int,
        item_bytes: int,
        is_cpu: bool,
    ) -> "_Attention":
        """Return them for the last `chunk` of `context_tokens` positions."""
        heads, dims = text.num_attention_heads, text.head_dim_of(index)
        key_heads, past = text.num_key_value_heads_of(index), context_tokens - chunk
        is_sliding, window = text.is_sliding(index), text.sliding_window
        # Of all keys, a sliding layer's chunk sees the window before it and itself.
        keys = (min(past, window - 1) if is_sliding else past) + chunk
        longest = min(window, keys) if is_sliding else keys
        rows = max(_MIN_BLOCK_QUERIES, longest // _INTERVALS_PER_BLOCK)
        rows = max(1, min(chunk, rows, _SCORE_BLOCK_BYTES // (4 * heads * keys)))
        seen = min(keys, longest + rows)  # keys of the last block
        row_bytes = (2 * dims if is_sliding else _global_row_dims(text)) * key_heads * item_bytes
        # In bfloat16 the CPU has scores and weights in that dtype, and both in float32 between.
        scores = heads * rows * seen
        block = 2 * scores * item_bytes + 2 * heads * rows * dims * item_bytes
        if is_cpu and item_bytes != 4:
            block += 2 * 4 * scores
        ring = (window + _RING_SLACK) * row_bytes
        copied = (keys * row_bytes + ring if is_sliding else past * row_bytes) if past else 0
        visible = seen if is_sliding else past + (chunk + rows) // 2
        return cls(
            query_bytes=heads * dims * chunk * item_bytes,
            key_value_bytes=chunk * row_bytes,
            cache_copy_bytes=copied,
            block_bytes=block,
            key_copy_bytes=2 * seen * key_heads * dims * item_bytes if is_cpu else 0,
            score_bytes=scores * (4 if is_cpu else item_bytes),
            mask_bytes=chunk * visible,
        )


def _one_of_each_type(text: TextConfig) -> list[int]:
    """Return the index of the first layer of each type."""
    return [text.layer_types.index(layer_type) for layer_type in sorted(set(text.layer_types))]


def _global_row_dims(text: TextConfig) -> int:
    """Return the dimensions of a global layer's row, [rotated | plain | rotated].

    Key and value share the plain ones.
    """
    share = text.rope_parameters[FULL_ATTENTION].partial_rotary_factor
    return text.global_head_dim + 2 * int(share * text.global_head_dim // 2)


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
    chunk = reading.chunk(context_tokens)
    layers = [
        _Attention.of(text, index, context_tokens, chunk, item_bytes, reading.is_cpu)
        for index in _one_of_each_type(text)
    ]
    largest = max(max(layer.score_bytes, layer.key_copy_bytes // 2) for layer in layers)
    return MemoryPlan(
        weights_bytes,
        cache_bytes(text, context_tokens, item_bytes),
        workspace_bytes(text, context_tokens, item_bytes, reading),
        context_tokens,
        drafter_bytes,
        reading.prefill_step_size,
        max(largest, chunk * text.intermediate_size * item_bytes),
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
) -> Reading:
    """Return the reading with the largest chunks whose temporary arrays fit.

    They fit if they take `workspace_limit_bytes` at most, and what weights and cache leave of
    `limit_bytes`.  In a long context some are as long as the cache, whatever the chunk: then a
    quarter more than the least is taken too, since ever smaller chunks save ever less.  Where no
    size makes it fit, it is the first by the bound alone: `check_memory` then refuses.

    Args:
        text: Of the decoder.
        weights_bytes: Of all parameters in memory.
        context_tokens: Positions of prompt and answer.
        item_bytes: Of one activation.
        limit_bytes: For everything.
        reading: All but the chunk size, which is the largest that may be chosen.
        drafter_bytes: Parameters of a drafter.
        workspace_limit_bytes: For temporary arrays.
    """
    reading = reading or Reading()
    steps = [step for step in PREFILL_STEPS if step < reading.prefill_step_size]
    choices = [replace(reading, prefill_step_size=s) for s in (reading.prefill_step_size, *steps)]
    plans = [
        plan_memory(text, weights_bytes, context_tokens, item_bytes, choice, drafter_bytes)
        for choice in choices
    ]
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

    Raises:
        MemoryLimitError: It does not fit; the message has the sum, and what would fit.
    """
    reading = reading or Reading()

    def plan_with(weights: int, how: Reading) -> MemoryPlan:
        return plan_memory(text, weights, context_tokens, item_bytes, how, drafter_bytes)

    plan = plan_with(weights_bytes, reading)
    if plan.total_bytes <= limit.limit_bytes:
        return plan
    alternatives = {
        option: plan_with(size, reading).total_bytes for option, size in (smaller or {}).items()
    }
    for step in PREFILL_STEPS:
        if step < reading.prefill_step_size:
            shorter = plan_with(weights_bytes, replace(reading, prefill_step_size=step))
            if shorter.total_bytes <= limit.limit_bytes:
                alternatives[f"--prefill-step-size {step}"] = shorter.total_bytes
                break
    ways = [
        f"{option} ({format_bytes(total_bytes)} in all)"
        for option, total_bytes in alternatives.items()
        if total_bytes <= limit.limit_bytes
    ]
    context = longest_context(
        text, weights_bytes, limit.limit_bytes, item_bytes, reading, drafter_bytes
    )
    if context >= _CACHE_GROWTH:
        ways.append(f"a context of at most {context:,} tokens")
    ways.append("a smaller checkpoint, such as a 4-bit conversion")
    raise MemoryLimitError(
        f"this needs {plan}; {limit.source} {format_bytes(limit.limit_bytes)}; what would help: "
        f"{', or '.join(ways)}"
    )


@contextlib.contextmanager
def bounded(plan: MemoryPlan) -> Iterator[None]:
    """Hold MLX to a plan for as long as the `with` lasts.

    MLX launches operations ahead of those that run, as long as there is room: without a limit a
    prompt's temporary arrays are up to twice as large, for nothing.  Past the limit it waits for
    what is under way, so the limit is the plan less one array, the largest that may come then.
    """
    import mlx.core as mx  # here, since planning itself needs no device

    before = mx.set_memory_limit(max(1, plan.total_bytes - plan.largest_bytes))
    try:
        yield
    finally:
        mx.set_memory_limit(before)


def machine_limit() -> MemoryLimit:
    """Return what this machine can hold: the GPU's recommendation on a Mac, else most of memory."""
    import mlx.core as mx  # here, since planning itself needs no device

    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if mx.default_device() == mx.Device(mx.gpu):
        recommended = mx.device_info().get("max_recommended_working_set_size")
        if recommended:
            return MemoryLimit(int(recommended), "the GPU of this Mac can use")
    if sys.platform == "linux" and (contained := _container_bytes()) is not None:
        physical_bytes = min(physical_bytes, contained)
    return MemoryLimit(int(physical_bytes * _USABLE_SHARE), "this machine can hold")


def mac_limit(memory_bytes: int) -> MemoryLimit:
    """Return what the GPU of a Mac with so much memory can use, about."""
    source = f"of {format_bytes(memory_bytes)} macOS leaves the GPU about"
    return MemoryLimit(int(memory_bytes * _MAC_SHARE), source)


def _container_bytes() -> int | None:
    """Return the memory limit of a Linux container, or None outside one."""
    try:
        content = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(content) if content.isdecimal() else None  # "max": no limit
