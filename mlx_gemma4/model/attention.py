"""Self-attention of the two layer types.

Sliding layers have keys and values of their own and pack them in one row a position.  Global
layers make both from one projection and keep one shared row (see `mlx_gemma4.cache.shared`); their
head dimensions stand in a permuted order, rotated ones first, which `global_layout` puts into the
weights when a checkpoint is loaded.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.cache import LayerCache, SharedCache, SlidingCache
from mlx_gemma4.config import TextConfig
from mlx_gemma4.kernels.interval_attention import IntervalMask, interval_attention
from mlx_gemma4.kernels.qkv_norm_rope import HeadLayout, qkv_norm_rope
from mlx_gemma4.kernels.shared_attention import shared_attention
from mlx_gemma4.kernels.shared_rows import PLAIN_ROWS
from mlx_gemma4.kernels.sliding_attention import sliding_attention
from mlx_gemma4.model.linear import Linear
from mlx_gemma4.model.rope import RoPE


class SlidingAttention(nn.Module):
    """Attention within the window, with separate keys and values.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedTextAttention.
    """

    def __init__(self, config: TextConfig, rope: RoPE) -> None:
        """Build the projections of a sliding layer."""
        super().__init__()
        self.head_dim = config.head_dim
        D, H, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(D, H * self.head_dim, bias=False)
        self.k_proj = Linear(D, K * self.head_dim, bias=False)
        self.v_proj = Linear(D, K * self.head_dim, bias=False)
        self.o_proj = Linear(H * self.head_dim, D, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
        self._rope = rope
        self._layout = HeadLayout(
            H, K, self.head_dim, rope.dims, row_format=None, eps=config.rms_norm_eps
        )

    def __call__(
        self,
        x: mx.array,
        mask: IntervalMask,
        offsets: mx.array,
        cache: LayerCache | None,
        keep: int | None = None,
    ) -> mx.array:
        """Attend from x [B, L, D]; return [B, L, D], or [B, keep, D].

        Args:
            x: Normed hidden states.
            mask: Of the L new positions.
            offsets: The position before each row's first, from `pack_offsets`.
            cache: Updated.
            keep: Return the last positions alone; None returns all.
        """
        q, rows = qkv_norm_rope(
            *_project(self, x),
            self.q_norm.weight,
            self.k_norm.weight,
            self._rope.periods,
            offsets,
            self._layout,
        )
        if cache is None:
            k, v = rows[..., : self.head_dim], rows[..., self.head_dim :]
            out = interval_attention(q, k, v, mask)
        else:
            assert isinstance(cache, SlidingCache)
            out = sliding_attention(q, cache.update_and_fetch(rows), mask)
        if keep is not None:
            out = out[:, :, -keep:]
        return self.o_proj(_join_heads(out))


class GlobalAttention(nn.Module):
    """Attention over everything so far, with K = RoPE(V * k_norm) in one shared row.

    `q_norm.weight` carries k_norm's weight on the dimensions that do not rotate, so that the plain
    part of the row serves as key and as value; `k_norm.weight` keeps the rotated dimensions alone.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedTextAttention.
    """

    def __init__(self, config: TextConfig, rope: RoPE) -> None:
        """Build the projections of a global layer."""
        super().__init__()
        self.head_dim = config.global_head_dim
        D, H = config.hidden_size, config.num_attention_heads
        K = config.num_global_key_value_heads
        self.q_proj = Linear(D, H * self.head_dim, bias=False)
        self.k_proj = Linear(D, K * self.head_dim, bias=False)
        self.o_proj = Linear(H * self.head_dim, D, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(rope.dims, config.rms_norm_eps)
        self._rope = rope
        self._layout = HeadLayout(
            H, K, self.head_dim, rope.dims, row_format=PLAIN_ROWS, eps=config.rms_norm_eps
        )

    def __call__(
        self,
        x: mx.array,
        mask: IntervalMask,
        offsets: mx.array,
        cache: LayerCache | None,
        keep: int | None = None,
    ) -> mx.array:
        """Attend from x [B, L, D]; return [B, L, D], or [B, keep, D].

        Args:
            x: Normed hidden states.
            mask: Of the L new positions.
            offsets: The position before each row's first, from `pack_offsets`.
            cache: Updated.
            keep: Attend from the last positions alone; None attends from all.
        """
        assert cache is None or isinstance(cache, SharedCache)
        layout = self._layout
        if cache is not None:
            layout = replace(layout, row_format=cache.row_format)
        q, *parts = qkv_norm_rope(
            *_project(self, x),
            self.q_norm.weight,
            self.k_norm.weight,
            self._rope.periods,
            offsets,
            layout,
        )
        if keep is not None:
            q, mask = q[:, :, -keep:], mask.last(keep)
        if cache is None:
            (rows,) = parts
            k, v = rows[..., : self.head_dim], rows[..., self._rope.dims :]
            out = interval_attention(q, k, v, mask)
        else:
            out = shared_attention(
                q, cache.update_and_fetch(parts), mask, self.k_norm.weight, self._rope.periods
            )
        return self.o_proj(_join_heads(out))


def _project(attention: Any, x: mx.array) -> tuple[mx.array, mx.array | None, mx.array | None]:
    """Return q, k, and v as `qkv_norm_rope` takes them: apart, or all in one (`fuse`)."""
    if "qkv_proj" in attention:
        return attention.qkv_proj(x), None, None
    v = attention.v_proj(x) if "v_proj" in attention else None
    return attention.q_proj(x), attention.k_proj(x), v


def _join_heads(x: mx.array) -> mx.array:
    """Return [B, H, L, Dh] as [B, L, H * Dh]."""
    B, H, L, Dh = x.shape
    return x.swapaxes(1, 2).reshape(B, L, H * Dh)
