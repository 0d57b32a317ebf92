"""Self-attention of the two layer types.

Sliding layers have keys and values of their own and pack them in one row a position.  Global
layers make both from one projection and keep one shared row (see `mlx_gemma4.cache.shared`); their
head dimensions stand in a permuted order, rotated ones first, which `global_layout` puts into the
weights when a checkpoint is loaded.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.cache import LayerCache
from mlx_gemma4.config import TextConfig
from mlx_gemma4.kernels.interval_attention import IntervalMask, interval_attention
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
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.eps = config.rms_norm_eps
        D, H, K = config.hidden_size, self.num_heads, self.num_key_value_heads
        self.q_proj = Linear(D, H * self.head_dim, bias=False)
        self.k_proj = Linear(D, K * self.head_dim, bias=False)
        self.v_proj = Linear(D, K * self.head_dim, bias=False)
        self.o_proj = Linear(H * self.head_dim, D, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, self.eps)
        self.k_norm = nn.RMSNorm(self.head_dim, self.eps)
        self._rope = rope

    def __call__(
        self, x: mx.array, mask: IntervalMask, offset: int, cache: LayerCache | None
    ) -> mx.array:
        """Attend from x [B, L, D] at positions offset..offset + L; return [B, L, D]."""
        B, L, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(B, L, self.num_heads, -1)).swapaxes(1, 2)
        k = self.k_norm(self.k_proj(x).reshape(B, L, self.num_key_value_heads, -1)).swapaxes(1, 2)
        v = self.v_proj(x).reshape(B, L, self.num_key_value_heads, -1).swapaxes(1, 2)
        q, k = self._rope(q, offset), self._rope(k, offset)
        rows = mx.concatenate([k, mx.fast.rms_norm(v, None, self.eps)], axis=-1)
        if cache is not None:
            rows = cache.update_and_fetch(rows)
        k, v = rows[..., : self.head_dim], rows[..., self.head_dim :]
        out = interval_attention(q, k, v, mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(B, L, -1))


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
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_global_key_value_heads
        self.eps = config.rms_norm_eps
        D, H, K = config.hidden_size, self.num_heads, self.num_key_value_heads
        self.q_proj = Linear(D, H * self.head_dim, bias=False)
        self.k_proj = Linear(D, K * self.head_dim, bias=False)
        self.o_proj = Linear(H * self.head_dim, D, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, self.eps)
        self.k_norm = nn.RMSNorm(rope.dims, self.eps)
        self._rope = rope

    def __call__(
        self, x: mx.array, mask: IntervalMask, offset: int, cache: LayerCache | None
    ) -> mx.array:
        """Attend from x [B, L, D] at positions offset..offset + L; return [B, L, D]."""
        B, L, _ = x.shape
        rotated = self._rope.dims
        q = self.q_norm(self.q_proj(x).reshape(B, L, self.num_heads, -1)).swapaxes(1, 2)
        n = self.k_proj(x).reshape(B, L, self.num_key_value_heads, -1).swapaxes(1, 2)
        n = mx.fast.rms_norm(n, None, self.eps)
        q = self._rope(q, offset)
        n_rotated = n[..., :rotated]
        k_rotated = self._rope(n_rotated * self.k_norm.weight, offset)
        rows = mx.concatenate([k_rotated, n[..., rotated:], n_rotated], axis=-1)
        if cache is not None:
            rows = cache.update_and_fetch(rows)
        k, v = rows[..., : self.head_dim], rows[..., rotated:]
        out = interval_attention(q, k, v, mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(B, L, -1))
