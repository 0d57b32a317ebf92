"""A small random network, sliding layers first and a global one last, with a window of 16."""

import mlx.core as mx
from parity_cases import config_of, parameters_of

from mlx_gemma4.config import Config
from mlx_gemma4.model.gemma4 import Gemma4


def narrow_network(num_sliding: int, seed: int) -> Gemma4:
    """Return it with so many sliding layers."""
    config = config_of("narrow")
    config["text_config"] |= {
        "layer_types": [*["sliding_attention"] * num_sliding, "full_attention"],
        "num_hidden_layers": num_sliding + 1,
        "sliding_window": 16,
    }
    weights = {
        name.removeprefix("model."): mx.array(array)
        for name, array in parameters_of(config, seed=seed).items()
    }
    return Gemma4.from_weights(Config.from_dict(config), weights)
