"""What a bench tells of the checkpoint and of the kernels: sizes and findings, no names."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Sizes, dtype_name
from mlx_gemma4.memory import Reading
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.weights import Checkpoint, expected_tensors

# A checkpoint's plain weights are of 16 bits in memory as far as its name goes; what the CPU makes
# of them is a matter of `dtype`.
_ITEM_BYTES = 2


@dataclass(frozen=True)
class ModelFacts:
    """What was measured: sizes, not a name.

    Attributes:
        num_parameters: However they are stored.
        bits_per_weight: In the files, or as quantized while loading, scales included.
        stored_as: In words.
        recipe: Of the conversion; None if it was not converted, "custom" if the recipe is not ours.
        dtype: Of activations.
        weights_bytes: In memory.
        token_bytes: Of the decoder's parameters, which each token reads.
        kv_bits: Of global layers' rows in the cache; None in documents of before there was a
            choice: these were of 16, and shared.
        kv_rows: What these rows are, "shared" or "value".
    """

    num_parameters: int
    bits_per_weight: float
    stored_as: str
    recipe: str | None
    dtype: str
    weights_bytes: int
    token_bytes: int
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    sliding_window: int
    kv_bits: int | None = None
    kv_rows: str | None = None


@dataclass(frozen=True)
class Quality:
    """How far a converted checkpoint is from its source, from the converter's own report.

    Attributes:
        prompts: That it was measured on.
        mean_kl: Of next-token distributions, in nats.
        top1_agreement: Share of positions with the same most likely token.
        perplexity: Of the prompts' texts.
        reference_perplexity: The source's.
    """

    prompts: int
    mean_kl: float
    top1_agreement: float
    perplexity: float | None
    reference_perplexity: float | None


@dataclass(frozen=True)
class KernelTiming:
    """A kernel and its definition on one call; see `kernels.tuning.Timing`."""

    label: str
    plain_ms: float
    kernel_ms: float


@dataclass(frozen=True)
class KernelFinding:
    """What was found out about a Metal kernel on this machine.

    Attributes:
        name: Of the kernel.
        is_on: Whether it runs.
        reason: Why, with the complaint of its check if it failed.
        timings: A case each.
    """

    name: str
    is_on: bool
    reason: str
    timings: tuple[KernelTiming, ...]


def describe_model(
    checkpoint: Checkpoint, model: Gemma4, quantize: int | None, recipe: str | None
) -> ModelFacts:
    """Return what is to be known of a loaded checkpoint.

    Args:
        checkpoint: Its files.
        model: Loaded from it.
        quantize: Bits, if it was quantized while loading.
        recipe: By which it was converted, as far as that is known.
    """
    text = checkpoint.config.text_config
    decoder = cast(list[tuple[str, mx.array]], tree_flatten(model.language_model.parameters()))
    num_parameters = sum(prod(shape) for shape in expected_tensors(checkpoint.config).values())
    nbytes = checkpoint.memory_bytes(_ITEM_BYTES, quantize) if quantize else checkpoint.disk_bytes
    stored_as = f"{quantize} bits, quantized while loading" if quantize else _stored_as(checkpoint)
    return ModelFacts(
        num_parameters=num_parameters,
        bits_per_weight=8 * nbytes / num_parameters,
        stored_as=stored_as,
        recipe=recipe,
        dtype=dtype_name(model.dtype),
        weights_bytes=model.nbytes,
        token_bytes=sum(array.nbytes for _, array in decoder),
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        sliding_window=text.sliding_window,
        kv_bits=model.kv_bits or Reading().kv_bits,
        kv_rows=model.kv_rows,
    )


def check_kernels(
    sizes: Sizes, progress: Callable[[int, int], None] | None = None
) -> tuple[KernelFinding, ...]:
    """Check every kernel against its definition, time both, and return what was found.

    Args:
        sizes: Of the model on whose shapes they are timed.
        progress: Called with (steps done, steps in all).
    """
    registry.prepare(sizes, thorough=True, progress=progress)
    return tuple(
        KernelFinding(
            name,
            state.is_on,
            state.reason,
            tuple(KernelTiming(t.label, t.plain_ms, t.kernel_ms) for t in state.timings),
        )
        for name, state in registry.report(sizes).states.items()
    )


def _stored_as(checkpoint: Checkpoint) -> str:
    """Return the formats of a checkpoint's matrices in words, the most bits first."""
    kinds = {_describe(settings): settings.bits for settings in checkpoint.quantization.values()}
    return " and ".join(sorted(kinds, key=lambda kind: -kinds[kind])) or "not quantized"


def _describe(settings: QuantizationSettings) -> str:
    mode = f"{settings.bits}-bit" if settings.mode == "affine" else settings.mode
    return f"{mode} in groups of {settings.group_size}"
