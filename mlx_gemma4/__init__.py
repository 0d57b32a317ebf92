"""Gemma 4 12B Unified on Apple silicon: text, pictures, sound, and video in, text out.

    from mlx_gemma4 import load, generate
    model, processor = load("google/gemma-4-12B-it")
    print(generate(model, processor, "What is the total?", images=["receipt.png"]))

Names are imported when they are first used: `import mlx_gemma4` alone loads no library.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from mlx_gemma4.api import (
        generate,
        generate_result,
        load,
        open_prompt_store,
        stream_generate,
    )
    from mlx_gemma4.config import Config
    from mlx_gemma4.errors import (
        CheckpointError,
        ConfigError,
        Gemma4Error,
        InputError,
        MemoryLimitError,
        MissingExtraError,
        OptionError,
        PromptCacheError,
    )
    from mlx_gemma4.generation.sampling import make_logits_processors, make_sampler
    from mlx_gemma4.generation.stream import GenerationResponse, GenerationResult
    from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan
    from mlx_gemma4.messages import MediaPart, Message, TextPart, ToolCall
    from mlx_gemma4.model.gemma4 import Gemma4
    from mlx_gemma4.processing.processor import Processor

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "Gemma4",
    "Gemma4Error",
    "GenerationResponse",
    "GenerationResult",
    "InputError",
    "MediaPart",
    "MemoryLimitError",
    "Message",
    "MissingExtraError",
    "Modality",
    "ModelInputs",
    "OptionError",
    "Processor",
    "PromptCacheError",
    "SoftTokenSpan",
    "TextPart",
    "ToolCall",
    "__version__",
    "generate",
    "generate_result",
    "load",
    "make_logits_processors",
    "make_sampler",
    "open_prompt_store",
    "stream_generate",
]

_MODULES = {
    "api": ("generate", "generate_result", "load", "open_prompt_store", "stream_generate"),
    "config": ("Config",),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "Gemma4Error",
        "InputError",
        "MemoryLimitError",
        "MissingExtraError",
        "OptionError",
        "PromptCacheError",
    ),
    "generation.sampling": ("make_logits_processors", "make_sampler"),
    "generation.stream": ("GenerationResponse", "GenerationResult"),
    "inputs": ("Modality", "ModelInputs", "SoftTokenSpan"),
    "messages": ("MediaPart", "Message", "TextPart", "ToolCall"),
    "model.gemma4": ("Gemma4",),
    "processing.processor": ("Processor",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # so that the next use costs nothing
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
