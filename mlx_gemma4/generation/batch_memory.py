"""How many conversations fit into memory beside each other."""

from functools import lru_cache

import mlx.core as mx

from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import (
    PREFILL_STEPS,
    Reading,
    cache_bytes,
    computes_on_cpu,
    workspace_bytes,
)
from mlx_gemma4.memory.arrays import CACHE_GROWTH
from mlx_gemma4.model.gemma4 import KV_BITS, Gemma4


class BatchMemory:
    """What a batch needs, against what is left of a model's `memory_limit`.

    Args:
        model: With its parameters, which may still be in their files; the batch is empty.
        prefill_step_size: Positions of a prompt that are read at a time; None takes fewer where
            memory is short.

    Attributes:
        kv_bits: Of all rows, which have one format: the model's, or 16 where it has none.
    """

    def __init__(self, model: Gemma4, prefill_step_size: int | None = None) -> None:
        limit = model.memory_limit
        taken_bytes = max(model.nbytes, mx.get_active_memory())
        self._free_bytes = None if limit is None else limit.limit_bytes - taken_bytes
        self._text = model.config.text_config
        self._item_bytes = model.dtype.size
        self._step_size = prefill_step_size or PREFILL_STEPS[-1]
        self._is_cpu = computes_on_cpu()
        self.kv_bits = KV_BITS[0] if model.kv_bits is None else model.kv_bits
        self._kv = self.kv_bits, model.kv_rows
        self._batch_bytes = lru_cache(maxsize=256)(self._sum_batch)

    def fits(self, num_rows: int, positions: int) -> bool:
        """Whether so many rows can decode, the longest of which will have so many positions."""
        return self._is_free(*self._batch_bytes(num_rows, _allocated(positions)))

    def can_join(self, num_rows: int, positions: int, inputs: ModelInputs) -> bool:
        """Whether a prompt can be read and make so many rows of as many positions at most.

        Args:
            num_rows: With the new one.
            positions: Of the longest row, and those that it will surely have soon.
            inputs: The prompt.
        """
        cache, workspace = self._batch_bytes(num_rows, _allocated(positions))
        longest_picture = max((span.length for span in inputs.spans if span.is_block), default=0)
        reading = Reading(
            self._step_size, longest_picture, inputs.num_patches, self._is_cpu, *self._kv
        )
        sizes = self._text, max(1, len(inputs)), self._item_bytes
        # While the prompt's own cache joins the others, its rows are there twice.
        return self._is_free(
            cache + cache_bytes(*sizes, *self._kv), max(workspace, workspace_bytes(*sizes, reading))
        )

    def _sum_batch(self, num_rows: int, positions: int) -> tuple[int, int]:
        """Return the bytes of all rows, and of what a step makes of them."""
        sizes = self._text, positions, self._item_bytes
        # A layer's rows are copied when they grow.
        reading = Reading(1, 0, 0, self._is_cpu, *self._kv, copied_tokens=positions)
        workspace = workspace_bytes(*sizes, reading)
        return num_rows * cache_bytes(*sizes, *self._kv), num_rows * workspace

    def _is_free(self, *sizes: int) -> bool:
        return self._free_bytes is None or sum(sizes) <= self._free_bytes


def _allocated(positions: int) -> int:
    return -(-positions // CACHE_GROWTH) * CACHE_GROWTH
