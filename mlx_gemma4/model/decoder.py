"""The decoder: scaled embeddings, layers of attention and feed-forward, a final norm."""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.cache import LayerCache, PromptCache
from mlx_gemma4.config import TextConfig
from mlx_gemma4.kernels.gate_up_geglu import gate_up_geglu, geglu
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.qkv_norm_rope import pack_offsets
from mlx_gemma4.kernels.residual_norms import residual_norms
from mlx_gemma4.model.attention import GlobalAttention, SlidingAttention
from mlx_gemma4.model.linear import Linear, QuantizedLinear
from mlx_gemma4.model.rope import RoPE

# Positions of a decoding step or of a draft at most; more are a part of a prompt.
MAX_DECODE_LENGTH = 16


@partial(mx.compile, shapeless=True)
def softcap(logits: mx.array, cap: mx.array) -> mx.array:
    """Return tanh(logits / cap) * cap in float32."""
    return mx.tanh(logits.astype(mx.float32) / cap) * cap


class MLP(nn.Module):
    """Gated feed-forward.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedTextMLP.
    """

    def __init__(self, config: TextConfig) -> None:
        """Build the three projections."""
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Map x [B, L, D] to [B, L, D]."""
        gate, up = self.gate_proj, self.up_proj
        if isinstance(gate, QuantizedLinear) and isinstance(up, QuantizedLinear):
            return self.down_proj(gate_up_geglu(x, gate.matrix, up.matrix))
        return self.down_proj(geglu(gate(x), up(x)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each between two norms, then one learned scalar.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedTextDecoderLayer.
    """

    def __init__(self, config: TextConfig, layer_type: str, rope: RoPE) -> None:
        """Build a layer of the given type."""
        super().__init__()
        dims, eps = config.hidden_size, config.rms_norm_eps
        attention = SlidingAttention if layer_type == "sliding_attention" else GlobalAttention
        self.self_attn = attention(config, rope)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(dims, eps)
        self.post_attention_layernorm = nn.RMSNorm(dims, eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(dims, eps)
        self.post_feedforward_layernorm = nn.RMSNorm(dims, eps)
        self.layer_scalar = mx.ones((1,))

    def __call__(
        self,
        x: mx.array,
        normed: mx.array,
        next_norm: nn.RMSNorm,
        mask: IntervalMask,
        offsets: mx.array,
        cache: LayerCache | None,
        keep: int | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Return the residual stream after this layer, and what `next_norm` makes of it.

        A block's end and the next one's norm are one operation, across layers too.

        Args:
            x: [B, L, D], the residual stream.
            normed: [B, L, D], `input_layernorm` of x.
            next_norm: `input_layernorm` of the next layer, or the final norm.
            mask: Of this layer's type.
            offsets: The position before each row's first, from `pack_offsets`.
            cache: Of this layer's type; updated.
            keep: Return the last positions alone; None returns all.

        Returns:
            [B, L, D] or [B, keep, D] each.
        """
        attended = self.self_attn(normed, mask, offsets, cache, keep)
        if keep is not None:
            x = x[:, -keep:]
        x, normed = residual_norms(
            x,
            attended,
            self.post_attention_layernorm.weight,
            self.pre_feedforward_layernorm.weight,
            None,
            next_norm.eps,
        )
        return residual_norms(
            x,
            self.mlp(normed),
            self.post_feedforward_layernorm.weight,
            next_norm.weight,
            self.layer_scalar,
            next_norm.eps,
        )


class LanguageModel(nn.Module):
    """Embedding table, layers, final norm, and the tied output head.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedTextModel.
    """

    def __init__(self, config: TextConfig) -> None:
        """Build the layers; those of one type share their rotary frequencies."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        ropes = {
            layer_type: RoPE(
                config.rope_parameters[layer_type],
                config.head_dim if layer_type == "sliding_attention" else config.global_head_dim,
            )
            for layer_type in sorted(set(config.layer_types))
        }
        self.layers = [
            DecoderLayer(config, layer_type, ropes[layer_type]) for layer_type in config.layer_types
        ]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, input_ids: mx.array) -> mx.array:
        """Return embeddings [B, L, D] of ids [B, L], scaled by sqrt(hidden_size).

        The factor is rounded to the embeddings' dtype, as the model was trained.
        """
        # Some quantization modes dequantize to bfloat16 alone.
        x = self.embed_tokens(input_ids).astype(self.norm.weight.dtype)
        return x * mx.array(self.config.hidden_size**0.5, x.dtype)

    def __call__(
        self,
        x: mx.array,
        masks: dict[str, IntervalMask],
        offsets: Sequence[int],
        cache: PromptCache | None,
        keep: int | None = None,
    ) -> mx.array:
        """Map embeddings x [B, L, D] to normed hidden states [B, L, D], or [B, keep, D].

        Of positions that are not kept, the last layer makes nothing but their rows in the cache.

        Args:
            x: Of positions offset..offset + L of each row.
            masks: By layer type.
            offsets: Positions of each row that are already in the cache.
            cache: One a layer; updated.
            keep: Return the last positions alone; None returns all.
        """
        packed = pack_offsets(offsets)
        norms = [*(layer.input_layernorm for layer in self.layers[1:]), self.norm]
        normed = self.layers[0].input_layernorm(x)
        for index, (layer, layer_type, next_norm) in enumerate(
            zip(self.layers, self.config.layer_types, norms, strict=True)
        ):
            layer_cache = cache[index] if cache else None
            x, normed = layer(
                x,
                normed,
                next_norm,
                masks[layer_type],
                packed,
                layer_cache,
                keep if next_norm is self.norm else None,
            )
            if layer_cache is not None and x.shape[1] > MAX_DECODE_LENGTH:
                # Rows that wait to be written hold a layer's arrays until the end of the chunk.
                mx.async_eval(x, normed, layer_cache.state)
        return normed

    def logits(self, x: mx.array) -> mx.array:
        """Return float32 logits [B, L, V] of hidden states [B, L, D], softcapped."""
        logits = self.embed_tokens.as_linear(x)
        cap = self.config.final_logit_softcapping
        return logits.astype(mx.float32) if cap is None else softcap(logits, mx.array(cap))
