"""Prompts that were read stay known, in memory and on disk, so that none is read twice."""

from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint
from mlx_gemma4.prompt_cache.store import MAX_BYTES, PromptCacheStore, PromptReading

__all__ = ["MAX_BYTES", "Fingerprint", "PromptCacheStore", "PromptReading", "open_archive"]
