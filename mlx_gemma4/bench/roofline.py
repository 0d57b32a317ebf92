"""The roofline: what memory and arithmetic allow, whatever the program.

A decoded token reads every matrix once, and the keys and values that it sees; a prompt is limited
by arithmetic.  Norms, 1.5 MB on the 12B, and activations are left out: less than a thousandth.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mlx_gemma4.bench.chips import Chip
from mlx_gemma4.config import TextConfig
from mlx_gemma4.config.quantization import QuantizationSettings
from mlx_gemma4.memory.arrays import global_row_bytes

# bytes of a scale, and of a bias if the mode has one
_GROUP_BYTES = {"affine": 4, "mxfp4": 1, "mxfp8": 1, "nvfp4": 1}

# How a global layer keeps a position: key and value apart; in one row that shares what does not
# rotate (`mlx_gemma4.cache.shared`); or the value alone, keys being made from it when read.
GlobalRows = Literal["separate", "shared", "value"]


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is stored.

    Attributes:
        bits: Of a weight.
        group_size: Weights that share a scale; None without scales.
        group_bytes: Of a group's scale, and of its bias if there is one.
    """

    bits: int
    group_size: int | None = None
    group_bytes: int = 4

    @classmethod
    def from_settings(cls, settings: QuantizationSettings) -> "WeightFormat":
        """Return the format that a checkpoint's quantization describes."""
        return cls(settings.bits, settings.group_size, _GROUP_BYTES[settings.mode])

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of a weight, its share of scale and bias included."""
        return self.bits / 8 + (self.group_bytes / self.group_size if self.group_size else 0.0)


BFLOAT16 = WeightFormat(16)

FormatOf = Callable[[str], WeightFormat]  # a module's path to how its matrix is stored


def matrices(text: TextConfig) -> Iterator[tuple[str, int]]:
    """Yield path and number of weights of every matrix that a decoded token is multiplied with.

    Paths are canonical, "language_model.layers.0.mlp.gate_proj"; the embedding table stands for the
    output head that it is.
    """
    hidden_size = text.hidden_size
    for index in range(text.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        head_dim = text.head_dim_of(index)
        query_dims = text.num_attention_heads * head_dim
        key_value_dims = text.num_key_value_heads_of(index) * head_dim
        yield f"{layer}.self_attn.q_proj", hidden_size * query_dims
        yield f"{layer}.self_attn.k_proj", hidden_size * key_value_dims
        if text.is_sliding(index):
            yield f"{layer}.self_attn.v_proj", hidden_size * key_value_dims
        yield f"{layer}.self_attn.o_proj", query_dims * hidden_size
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield f"{layer}.mlp.{name}", hidden_size * text.intermediate_size
    yield "language_model.embed_tokens", text.vocab_size * hidden_size


def weight_bytes(text: TextConfig, format_of: FormatOf) -> float:
    """Return the bytes of matrices that a decoded token reads.

    Args:
        text: Of the decoder.
        format_of: How the matrix of each module is stored.
    """
    return sum(count * format_of(path).bytes_per_weight for path, count in matrices(text))


def sliding_bytes(text: TextConfig, context: int, item_bytes: float = 2.0) -> float:
    """Return the bytes of keys and values that a token reads in sliding layers.

    Args:
        text: Of the decoder.
        context: Positions that it sees, itself included.
        item_bytes: Of one value; 17 / 16 for 8 bits in groups of 64.
    """
    layers = [index for index in range(text.num_hidden_layers) if text.is_sliding(index)]
    dims = sum(2 * text.num_key_value_heads_of(i) * text.head_dim_of(i) for i in layers)
    return dims * min(context, text.sliding_window) * item_bytes


def global_bytes(
    text: TextConfig,
    context: int,
    item_bytes: float = 2.0,
    rows: GlobalRows = "separate",
    kv_bits: int = 16,
) -> float:
    """Return the bytes of keys and values that a token reads in global layers.

    Args:
        text: Of the decoder.
        context: Positions that it sees, itself included.
        item_bytes: Of one value; whole bytes, unless rows are separate.
        rows: How a position is kept.
        kv_bits: Of rows that are not separate: 16 is the dtype of activations, 8 is int8.
    """
    layers = [index for index in range(text.num_hidden_layers) if not text.is_sliding(index)]
    heads = sum(text.num_key_value_heads_of(index) for index in layers)
    row_bytes = (
        2 * text.global_head_dim * item_bytes
        if rows == "separate"
        else global_row_bytes(text, int(item_bytes), kv_bits, rows)
    )
    return heads * context * row_bytes


def attention_operations(text: TextConfig, *, window: float, context: float) -> tuple[float, float]:
    """Return the operations of a token's attention in sliding and in global layers.

    Args:
        text: Of the decoder.
        window: Keys that it sees in a sliding layer.
        context: Keys that it sees in a global layer.
    """
    totals = {True: 0.0, False: 0.0}
    for index in range(text.num_hidden_layers):
        # two products, a multiplication and an addition each
        totals[text.is_sliding(index)] += 4 * text.num_attention_heads * text.head_dim_of(index)
    return totals[True] * window, totals[False] * context


def decode_tokens_per_s(chip: Chip, read_bytes: float) -> float:
    """Return the most tokens a second that reading so many bytes for each allows."""
    return chip.bandwidth / read_bytes


def prefill_tokens_per_s(chip: Chip, text: TextConfig, length: int) -> float:
    """Return the most tokens a second over a prompt of `length` positions, causal, from nothing.

    The output head works on the last position alone, and is left out.
    """
    layers = sum(count for path, count in matrices(text) if not path.endswith("embed_tokens"))
    seen = min(length, text.sliding_window)
    # Keys of a row in a sliding layer, on average: 1, 2, 3 ... up to the window, then all of it.
    window = (seen * (seen + 1) / 2 + (length - seen) * seen) / length
    attention = attention_operations(text, window=window, context=length / 2)
    return chip.prompt_tflops * 1e12 / (2 * layers + sum(attention))


def balanced_rows(chip: Chip, weight_format: WeightFormat) -> float:
    """Return how many rows a product takes in the time in which its matrix is read.

    Up to so many, a forward of several drafted tokens costs what one token costs.
    """
    operations_per_byte = chip.prompt_tflops * 1e12 / chip.bandwidth
    return operations_per_byte * weight_format.bytes_per_weight / 2
