"""Rotary positions: which dimensions rotate, and how fast; `kernels.qkv_norm_rope` rotates.

Sliding layers rotate every dimension.  Global layers use the "proportional" kind: of `head_dim`
dimensions only the first `partial_rotary_factor` share of the pairs rotates, at the frequencies
that these pairs have in the whole head.
"""

import mlx.core as mx
import numpy as np

from mlx_gemma4.config import RopeParameters


class RoPE:
    """Rotation of the first `dims` dimensions of a head, pair (i, i + dims / 2) by one angle.

    Attributes:
        dims: Dimensions that rotate.
        periods: [dims / 2] float32, positions for one radian.
    """

    def __init__(self, parameters: RopeParameters, head_dim: int) -> None:
        """Compute the periods.

        Args:
            parameters: `config.text_config.rope_parameters[layer_type]`.
            head_dim: Dimensions of a head of that layer type.

        Source: transformers modeling_rope_utils.py, _compute_proportional_rope_parameters.
        """
        self.dims = 2 * int(parameters.partial_rotary_factor * head_dim // 2)
        # The reference works in float32; MLX wants periods and takes their reciprocal, so they come
        # from the rounded frequencies: both then use the same angles to one rounding.
        exponents = np.arange(0, self.dims, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = np.float32(1) / np.float32(parameters.rope_theta) ** exponents
        self.periods = mx.array((1 / frequencies.astype(np.float64)).astype(np.float32))
