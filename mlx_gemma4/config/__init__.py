"""config.json and generation_config.json as frozen dataclasses, checked when they are read.

Google's form and the form that transformers writes mean the same and become the same objects.  The
one rule: whatever a checkpoint asks for is either honoured or refused by the name of its key.
"""

from mlx_gemma4.config.front_ends import FRAME_SIZE, PATCH_SIZE, AudioConfig, VisionConfig
from mlx_gemma4.config.generation import GenerationConfig
from mlx_gemma4.config.model import Config
from mlx_gemma4.config.quantization import (
    QUANTIZATION_MODES,
    QuantizationConfig,
    QuantizationSettings,
)
from mlx_gemma4.config.text import FULL_ATTENTION, SLIDING_ATTENTION, RopeParameters, TextConfig

__all__ = [
    "FRAME_SIZE",
    "FULL_ATTENTION",
    "PATCH_SIZE",
    "QUANTIZATION_MODES",
    "SLIDING_ATTENTION",
    "AudioConfig",
    "Config",
    "GenerationConfig",
    "QuantizationConfig",
    "QuantizationSettings",
    "RopeParameters",
    "TextConfig",
    "VisionConfig",
]
