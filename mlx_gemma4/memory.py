"""What a model needs and what a machine can hold: arithmetic on the config, no arrays.

A checkpoint that does not fit is refused before it is loaded, with the numbers and the way out:
past its limit a Mac swaps, and one token takes minutes.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_gemma4.config import FULL_ATTENTION, TextConfig
from mlx_gemma4.errors import MemoryLimitError

# Context that loading makes room for; a longer prompt is checked again when it is there.
DEFAULT_CONTEXT = 4096

# As mlx_gemma4.cache and mlx_gemma4.generation do it: positions by which caches grow, slots of a
# ring beyond the window, positions of a prefill chunk, bytes of one block of attention scores.
_CACHE_GROWTH = 256
_RING_SLACK = 16
_PREFILL_STEP = 2048
_SCORE_BLOCK_BYTES = 64 << 20

# Share of the memory of a machine without a GPU's own limit that other programs leave.
_USABLE_SHARE = 0.9
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
class MemoryPlan:
    """What a model with one conversation needs.

    Attributes:
        weights_bytes: Of all parameters.
        cache_bytes: Keys and values of `context_tokens` positions.
        workspace_bytes: Activations while a chunk of the prompt is read, an upper estimate.
        context_tokens: Positions of prompt and answer.
    """

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    context_tokens: int

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes

    def __str__(self) -> str:
        """Return the sum as messages show it."""
        return (
            f"{format_bytes(self.total_bytes)} (weights {format_bytes(self.weights_bytes)} + cache "
            f"{format_bytes(self.cache_bytes)} for {self.context_tokens:,} tokens + "
            f"{format_bytes(self.workspace_bytes)} to work in)"
        )


def format_bytes(count: int) -> str:
    """Return a size in decimal units, as shops and Hubs count: 23.9 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


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
        head_dim = text.head_dim_of(index)
        if text.is_sliding(index):
            rows, row_dims = min(allocated, text.sliding_window + _RING_SLACK), 2 * head_dim
        else:
            # Key and value share their plain dimensions: the row is [rotated | plain | rotated].
            share = text.rope_parameters[FULL_ATTENTION].partial_rotary_factor
            rows, row_dims = allocated, head_dim + 2 * int(share * head_dim // 2)
        total += rows * row_dims * text.num_key_value_heads_of(index) * item_bytes
    return total


def workspace_bytes(text: TextConfig, context_tokens: int, item_bytes: int) -> int:
    """Return an upper estimate of the bytes of activations while a prompt is read."""
    chunk = min(context_tokens, _PREFILL_STEP)
    query_dims = text.num_attention_heads * max(text.head_dim, text.global_head_dim)
    # The widest moment of a layer: gate, up, and their product; or queries before and after their
    # rotation, and attention's output.  The residual stream and its norms live beside either.
    row_dims = max(3 * text.intermediate_size, 4 * query_dims) + 6 * text.hidden_size
    scores = 3 * min(_SCORE_BLOCK_BYTES, 4 * text.num_attention_heads * chunk * context_tokens)
    logits = 4 * 4 * text.vocab_size  # float32, and what sampling makes of them
    return chunk * row_dims * item_bytes + scores + logits


def plan_memory(
    text: TextConfig, weights_bytes: int, context_tokens: int, item_bytes: int
) -> MemoryPlan:
    """Return what the model needs for a conversation of `context_tokens` positions."""
    return MemoryPlan(
        weights_bytes,
        cache_bytes(text, context_tokens, item_bytes),
        workspace_bytes(text, context_tokens, item_bytes),
        context_tokens,
    )


def longest_context(text: TextConfig, weights_bytes: int, limit_bytes: int, item_bytes: int) -> int:
    """Return how many positions fit beside the weights, at most the model's context; 0 if none."""
    low, high = 0, text.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        if plan_memory(text, weights_bytes, middle, item_bytes).total_bytes <= limit_bytes:
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

    Raises:
        MemoryLimitError: It does not fit; the message has the sum, and what would fit.
    """
    plan = plan_memory(text, weights_bytes, context_tokens, item_bytes)
    if plan.total_bytes <= limit.limit_bytes:
        return plan
    ways = [
        f"{option} ({format_bytes(alternative.total_bytes)} in all)"
        for option, size in (smaller or {}).items()
        if (alternative := plan_memory(text, size, context_tokens, item_bytes)).total_bytes
        <= limit.limit_bytes
    ]
    context = longest_context(text, weights_bytes, limit.limit_bytes, item_bytes)
    if context >= _CACHE_GROWTH:
        ways.append(f"a context of at most {context:,} tokens")
    ways.append("a smaller checkpoint, such as a 4-bit conversion")
    raise MemoryLimitError(
        f"this needs {plan}; {limit.source} {format_bytes(limit.limit_bytes)}; what would help: "
        f"{', or '.join(ways)}"
    )


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


def _container_bytes() -> int | None:
    """Return the memory limit of a Linux container, or None outside one."""
    try:
        content = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(content) if content.isdecimal() else None  # "max": no limit
