"""The two front ends: a picture's patches and a sound's frames into soft tokens.

There is no encoder: a norm, one matrix, positions for pictures, and a projection into the decoder.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.config import AudioConfig, VisionConfig
from mlx_gemma4.model.linear import Linear

# nn.LayerNorm of the reference is built without an eps; this is torch's default.
LAYER_NORM_EPS = 1e-5


class VisionEmbedder(nn.Module):
    """Patches of raw pixels with their place in the picture.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedVisionEmbedder.
    """

    def __init__(self, config: VisionConfig) -> None:
        """Build the norms, the patch matrix, and the table of positions."""
        super().__init__()
        dims = config.mm_embed_dim
        self.patch_ln1 = nn.LayerNorm(config.patch_dim, LAYER_NORM_EPS)
        self.patch_dense = Linear(config.patch_dim, dims)
        self.patch_ln2 = nn.LayerNorm(dims, LAYER_NORM_EPS)
        self.pos_embedding = mx.zeros((config.mm_posemb_size, 2, dims))
        self.pos_norm = nn.LayerNorm(dims, LAYER_NORM_EPS)

    def __call__(self, patches: mx.array, positions: mx.array) -> mx.array:
        """Embed patches.

        Args:
            patches: [P, 6912] floating point in 0..1, rows of pixels, channels last.
            positions: [P, 2] int32, (x, y) in the picture's grid.

        Returns:
            [P, mm_embed_dim].
        """
        x = layer_norm_of_pixels(patches, self.patch_ln1).astype(patches.dtype)
        x = self.patch_ln2(self.patch_dense(x))
        x = x + self.pos_embedding[positions[:, 0], 0] + self.pos_embedding[positions[:, 1], 1]
        return self.pos_norm(x)


def layer_norm_of_pixels(patches: mx.array, norm: nn.LayerNorm) -> mx.array:
    """Return the layer norm of raw pixels, exact where a patch is flat.

    A patch of one colour has no variance, so the norm blows an error of its mean up by 300, the
    same for all of its 6,912 values: a plain float32 sum of so many moves logits by percents.
    Here sums go in two stages, and the mean of what is left is taken once more.

    Args:
        patches: [P, 3 * side * side] floating point.
        norm: The parameters and eps.

    Returns:
        [P, 3 * side * side] float32.
    """
    P, D = patches.shape

    def mean(x: mx.array) -> mx.array:
        rows = x.reshape(P, math.isqrt(D // 3), -1)  # of pixels
        return rows.mean(axis=-1).mean(axis=-1, keepdims=True)

    x = patches.astype(mx.float32)
    x = x - mean(x)
    x = x - mean(x)
    return x * mx.rsqrt(mean(x * x) + norm.eps) * norm.weight + norm.bias


class MultimodalEmbedder(nn.Module):
    """Norm without weight and projection into the decoder's dimensions.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedMultimodalEmbedder.
    """

    def __init__(self, config: VisionConfig | AudioConfig, hidden_size: int) -> None:
        """Build the projection."""
        super().__init__()
        self.eps = config.rms_norm_eps
        self.embedding_projection = Linear(config.output_proj_dims, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Project x [M, output_proj_dims] to soft tokens [M, hidden_size]."""
        return self.embedding_projection(mx.fast.rms_norm(x, None, self.eps))
