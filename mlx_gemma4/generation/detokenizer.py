"""Token ids to text while they arrive: never half a character, never a second look at old ids.

Gemma's decoder has no memory except in runs of byte tokens, which spell characters outside the
vocabulary.  So a run is held back until it ends, and all else is decoded at once: linear time, and
the pieces join to exactly what decoding all ids together gives.
"""

from collections.abc import Sequence

from mlx_gemma4.processing.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of ids into a stream of text.

    The `DecodeStream` of the tokenizers library does not serve: it raises where a byte run that
    began as a valid character ends as an invalid one, and it loses what is held back at the end.

    Args:
        tokenizer: The checkpoint's tokenizer.
        skip_special_tokens: Leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._byte_ids = tokenizer.byte_ids
        self._skipped_ids = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._held: list[int] = []  # a run of byte tokens that may go on

    def add(self, token_id: int) -> str:
        """Return the text that this id completes, often its own, possibly none."""
        if token_id in self._skipped_ids:
            return ""  # invisible to the decoder too: a byte run goes on across it
        if token_id in self._byte_ids:
            self._held.append(token_id)
            return ""
        if not self._held:
            return self._decode([token_id])
        self._held.append(token_id)
        return self.finish()

    def finish(self) -> str:
        """Return what was held back; what is no whole character comes as U+FFFD."""
        text = self._decode(self._held) if self._held else ""
        self._held.clear()
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
