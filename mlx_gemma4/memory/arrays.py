"""Bytes of a model's arrays: parameters, caches, and what reading a prompt makes for a while.

Arithmetic on the config; MLX's own account of all this is compared in benchmarks/bench_memory.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_gemma4.config import FULL_ATTENTION, QuantizationSettings, TextConfig

# Chunk sizes to choose from: halves, since half a chunk takes about half the memory.
PREFILL_STEPS = (2048, 1024, 512, 256, 128, 64)

# As mlx_gemma4.cache and mlx_gemma4.kernels do it: positions by which caches grow, slots of a ring
# beyond the window, bytes of one block of attention scores, and its queries at least.
CACHE_GROWTH = 256
_RING_SLACK = 16
_SCORE_BLOCK_BYTES = 64 << 20
_MIN_BLOCK_QUERIES = 128
_INTERVALS_PER_BLOCK = 8
# Scores, keys, and values of a block of rows that must be unpacked, how many of these one block's
# operations take, and the queries that share one.  Left to itself MLX launches up to nine ahead; it
# is held to the plan, so that planning more would take more, for nothing.
_UNPACKED_BYTES, _UNPACKED_AHEAD, _UNPACKED_QUERIES = 16 << 20, 3, 256

# Numbers in a patch of 48 x 48 pixels.
_PATCH_DIM = 48 * 48 * 3


@dataclass(frozen=True)
class Reading:
    """How a prompt is read, as far as memory depends on it.

    Attributes:
        prefill_step_size: Positions of a chunk.
        longest_picture: Soft tokens of the largest picture, which no chunk cuts.
        pixel_tokens: Soft tokens that come from pixels, in the whole prompt.
        is_cpu: Attention copies keys and values there, and its softmax is a float32 array.
        kv_bits: Of global layers' rows in the cache: 16 is the dtype of activations, 8 is int8.
        kv_rows: What these rows are: "shared", or "value" for values alone.
        copied_tokens: Positions of a conversation that goes on, for whose rows and the new ones
            room is made elsewhere.
    """

    prefill_step_size: int = PREFILL_STEPS[0]
    longest_picture: int = 0
    pixel_tokens: int = 0
    is_cpu: bool = True
    kv_bits: int = 16
    kv_rows: str = "shared"
    copied_tokens: int = 0

    def chunk(self, context_tokens: int) -> int:
        """Return the positions of the longest chunk."""
        return min(context_tokens, max(self.prefill_step_size, self.longest_picture))


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


def cache_bytes(
    text: TextConfig,
    context_tokens: int,
    item_bytes: int,
    kv_bits: int = 16,
    kv_rows: str = "shared",
) -> int:
    """Return the bytes of keys and values after `context_tokens` positions.

    On the 12B in bfloat16 this is 320 KiB a token for the sliding layers, up to their window, and
    10 KiB a token without end for the global ones.

    Args:
        text: Of the decoder.
        context_tokens: Positions in the cache.
        item_bytes: Of one activation: 2 for bfloat16, 4 for float32.
        kv_bits: See `Reading`.
        kv_rows: See `Reading`.
    """
    allocated = -(-context_tokens // CACHE_GROWTH) * CACHE_GROWTH
    total = 0
    for index in range(text.num_hidden_layers):
        heads = text.num_key_value_heads_of(index)
        if text.is_sliding(index):
            rows = min(allocated, text.sliding_window + _RING_SLACK)
            total += rows * heads * 2 * text.head_dim * item_bytes
            continue
        total += allocated * heads * global_row_bytes(text, item_bytes, kv_bits, kv_rows)
    return total


def global_row_bytes(
    text: TextConfig, item_bytes: int, kv_bits: int = 16, kv_rows: str = "shared"
) -> int:
    """Return the bytes of a position in a key head of a global layer."""
    has_keys = kv_rows == "shared"
    dims = _shared_row_dims(text) if has_keys else text.global_head_dim
    # int8 has a scale for the value, and one for the rotated key.
    return dims * item_bytes if kv_bits == 16 else dims + (1 + has_keys) * item_bytes


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
    layers = _attention_layers(text, context_tokens, item_bytes, reading)
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


def largest_array_bytes(
    text: TextConfig, context_tokens: int, item_bytes: int, reading: Reading | None = None
) -> int:
    """Return the bytes of the largest temporary array while the prompt's last chunk is read."""
    reading = reading or Reading()
    layers = _attention_layers(text, context_tokens, item_bytes, reading)
    largest = max(max(layer.score_bytes, layer.key_copy_bytes // 2) for layer in layers)
    return max(largest, reading.chunk(context_tokens) * text.intermediate_size * item_bytes)


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
        item_bytes: int,
        reading: Reading,
    ) -> "_Attention":
        """Return them for the last chunk of `context_tokens` positions."""
        is_cpu, chunk = reading.is_cpu, reading.chunk(context_tokens)
        heads, dims = text.num_attention_heads, text.head_dim_of(index)
        key_heads, past = text.num_key_value_heads_of(index), context_tokens - chunk
        is_sliding, window = text.is_sliding(index), text.sliding_window
        # Of all keys, a sliding layer's chunk sees the window before it and itself.
        keys = (min(past, window - 1) if is_sliding else past) + chunk
        longest = min(window, keys) if is_sliding else keys
        rows = max(_MIN_BLOCK_QUERIES, longest // _INTERVALS_PER_BLOCK)
        rows = max(1, min(chunk, rows, _SCORE_BLOCK_BYTES // (4 * heads * keys)))
        seen = min(keys, longest + rows)  # keys of the last block
        row_bytes = (2 * dims if is_sliding else _shared_row_dims(text)) * key_heads * item_bytes
        # In bfloat16 the CPU has scores and weights in that dtype, and both in float32 between.
        scores = heads * rows * seen
        block = 2 * scores * item_bytes + 2 * heads * rows * dims * item_bytes
        if is_cpu and item_bytes != 4:
            block += 2 * 4 * scores
        ring = (window + _RING_SLACK) * row_bytes
        kept = global_row_bytes(text, item_bytes, reading.kv_bits, reading.kv_rows) * key_heads
        copied = reading.copied_tokens * kept
        if is_sliding:
            copied = keys * row_bytes + ring if past else 0
        visible = seen if is_sliding else past + (chunk + rows) // 2
        is_plain = is_sliding or (reading.kv_bits, reading.kv_rows) == (16, "shared")
        is_whole = is_sliding or (is_plain and not is_cpu)  # all rows in one product
        block_keys = _UNPACKED_BYTES // (
            4 * heads * min(chunk, _UNPACKED_QUERIES) + 2 * key_heads * dims * item_bytes
        )
        if not is_whole and keys > block_keys:
            return cls(
                query_bytes=heads * dims * chunk * item_bytes,
                key_value_bytes=chunk * row_bytes,
                cache_copy_bytes=copied,
                block_bytes=_UNPACKED_AHEAD * _UNPACKED_BYTES,
                key_copy_bytes=0,
                score_bytes=_UNPACKED_BYTES,
                mask_bytes=0,
            )
        unpacked = 0 if is_plain else 2 * keys * key_heads * dims * item_bytes
        return cls(
            query_bytes=heads * dims * chunk * item_bytes,
            key_value_bytes=chunk * row_bytes + unpacked,
            cache_copy_bytes=copied,
            block_bytes=block,
            key_copy_bytes=2 * seen * key_heads * dims * item_bytes if is_cpu else 0,
            score_bytes=scores * (4 if is_cpu else item_bytes),
            mask_bytes=chunk * visible,
        )


def _attention_layers(
    text: TextConfig, context_tokens: int, item_bytes: int, reading: Reading
) -> list[_Attention]:
    """Return the arrays of the first layer of each type."""
    return [
        _Attention.of(
            text,
            text.layer_types.index(layer_type),
            context_tokens,
            item_bytes,
            reading,
        )
        for layer_type in sorted(set(text.layer_types))
    ]


def _shared_row_dims(text: TextConfig) -> int:
    """Return the dimensions of a global layer's row, [rotated | plain | rotated].

    Key and value share the plain ones.
    """
    share = text.rope_parameters[FULL_ATTENTION].partial_rotary_factor
    return text.global_head_dim + 2 * int(share * text.global_head_dim // 2)
