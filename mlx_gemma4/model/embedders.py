"""The two front ends: a picture's patches and a sound's frames into soft tokens.

There is no encoder: a norm, one matrix, positions for pictures, and a projection into the decoder.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.config import AudioConfig, VisionConfig

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
        self.patch_dense = nn.Linear(config.patch_dim, dims)
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
        x = self.patch_ln2(self.patch_dense(self.patch_ln1(patches)))
        x = x + self.pos_embedding[positions[:, 0], 0] + self.pos_embedding[positions[:, 1], 1]
        return self.pos_norm(x)


class MultimodalEmbedder(nn.Module):
    """Norm without weight and projection into the decoder's dimensions.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedMultimodalEmbedder.
    """

    def __init__(self, config: VisionConfig | AudioConfig, hidden_size: int) -> None:
        """Build the projection."""
        super().__init__()
        self.eps = config.rms_norm_eps
        self.embedding_projection = nn.Linear(config.output_proj_dims, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Project x [M, output_proj_dims] to soft tokens [M, hidden_size]."""
        return self.embedding_projection(mx.fast.rms_norm(x, None, self.eps))
