"""Keys and values of past positions: a ring for sliding layers, shared rows for global ones."""

from collections.abc import Sequence

from mlx_gemma4.cache.shared import SharedCache
from mlx_gemma4.cache.sliding import SlidingCache

LayerCache = SlidingCache | SharedCache
PromptCache = Sequence[LayerCache]  # one a layer

__all__ = [
    "LayerCache",
    "PromptCache",
    "SharedCache",
    "SlidingCache",
    "global_caches",
    "trim_prompt_cache",
]


def global_caches(prompt_cache: PromptCache) -> list[SharedCache]:
    """Return the caches of global layers, whose rows all have one format."""
    return [layer_cache for layer_cache in prompt_cache if isinstance(layer_cache, SharedCache)]


def trim_prompt_cache(prompt_cache: PromptCache, count: int) -> None:
    """Undo the last `count` positions in every layer, or in none.

    Raises:
        ValueError: A ring no longer holds what the remaining positions see.
    """
    for layer_cache in prompt_cache:
        if not layer_cache.is_trimmable(count):
            layer_cache.trim(count)  # raises with the numbers
    for layer_cache in prompt_cache:
        layer_cache.trim(count)
