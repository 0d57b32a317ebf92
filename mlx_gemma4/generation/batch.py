"""Many prompts at once: each is read alone, then all decode together, a row of the batch each.

A forward pass reads every weight once, however many rows it has, and that is what decoding waits
for.  Rows come and go between passes, so a short answer does not wait for a long one.  All rows
have as many slots as the longest: when memory for the next positions is missing, the row that came
last leaves, and is read again, with what it has said, when there is room.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import cast

import mlx.core as mx

from mlx_gemma4.cache.ragged import join_row, keep_rows, make_ragged
from mlx_gemma4.errors import Gemma4Error, OptionError
from mlx_gemma4.generation.batch_memory import BatchMemory
from mlx_gemma4.generation.batch_row import BatchAnswer, BatchFailure, BatchRequest, BatchRow
from mlx_gemma4.generation.generate import STEPS_PER_CLEAR, prefill
from mlx_gemma4.generation.reply import Reply
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.tokenizer import Tokenizer

BATCH_SIZE = 8

# Positions of an answer that a row must have memory for when it joins: else it would soon leave.
_RESERVE = 256

_OUT_OF_MEMORY = "the answer ends where the memory for one conversation does"


class Batch:
    """Answers many prompts, several at a time.

    Args:
        model: With parameters loaded, and the `memory_limit` that all rows together have to keep.
            Where its `kv_bits` is None, those of a batch are 16: rows come and go, so what one
            prompt needs would decide for its neighbours.
        tokenizer: The checkpoint's.
        eos_token_ids: Any of these ends an answer and is not part of it.
        batch_size: Rows at most.
        prefill_step_size: Positions of a prompt that are read at a time; None takes as many as
            temporary memory allows.
        progress: Called after each step with the number of tokens so far.

    Attributes:
        prompt_tokens: Positions of the prompts that were read.
        generation_tokens: Tokens of all answers so far.
        most_rows: Rows that there were at once.
        is_short_of_memory: Whether a row had to wait for memory, or to leave for want of it.

    Raises:
        OptionError: A batch size below 1.
    """

    def __init__(
        self,
        model: Gemma4,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Sequence[int],
        batch_size: int = BATCH_SIZE,
        prefill_step_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; allowed is 1 or more")
        self.prompt_tokens = self.generation_tokens = self.most_rows = 0
        self.is_short_of_memory = False
        self._model = model
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._batch_size = batch_size
        self._prefill_step_size = prefill_step_size
        self._progress = progress or (lambda tokens: None)
        self._memory = BatchMemory(model, prefill_step_size)
        self._rows: list[BatchRow] = []
        self._cache = make_ragged(model.make_cache(kv_bits=self._memory.kv_bits))
        self._tokens = mx.zeros((0,), mx.uint32)  # [B], the next of each row, still to be read
        self._waiting: deque[BatchRow] = deque()  # for memory

    def answer(
        self, requests: Iterable[BatchRequest | BatchFailure]
    ) -> Generator[BatchAnswer | BatchFailure, None, None]:
        """Yield an answer or a failure for each request, as they are done.

        Requests are taken when there is room for them; a failure among them is passed on.
        """
        coming = iter(requests)
        steps = 0
        while True:
            yield from self._admit(coming)
            yield from self._make_room()
            if self._rows:
                yield from self._step()
                self._progress(self.generation_tokens)
            elif not self._waiting:
                return
            steps += 1
            if steps % STEPS_PER_CLEAR == 0:
                mx.clear_cache()

    def _admit(
        self, coming: Iterator[BatchRequest | BatchFailure]
    ) -> Generator[BatchAnswer | BatchFailure, None, None]:
        """Fill the batch: with rows that wait, then with new ones."""
        while len(self._rows) < self._batch_size:
            if not self._waiting:
                request = next(coming, None)
                if request is None:
                    return
                if isinstance(request, BatchFailure):
                    yield request
                    continue
                try:
                    self._waiting.append(self._open(request))
                except Gemma4Error as error:
                    yield BatchFailure(key=request.key, error=error)
                    continue
            row = self._waiting[0]
            if not self._has_room(row):
                self.is_short_of_memory = True
                return
            self._waiting.popleft()
            try:
                self._read(row)
            except Gemma4Error as error:
                if not row.has_begun:
                    yield BatchFailure(key=row.request.key, error=error)
                    continue
                row.end(_OUT_OF_MEMORY)
            if row.is_done:
                yield row.answer

    def _open(self, request: BatchRequest) -> BatchRow:
        reply = Reply(
            request.inputs, self._tokenizer, eos_token_ids=self._eos_token_ids, stop=request.stop
        )
        return BatchRow(request, reply, self._model.config.text_config.max_position_embeddings)

    def _has_room(self, row: BatchRow) -> bool:
        """Whether a row can join; without others, reading it will tell."""
        positions = max(self._cache[0].offset, row.length + min(_RESERVE, row.tokens_left))
        num_rows = len(self._rows) + 1
        return num_rows == 1 or self._memory.can_join(num_rows, positions, row.inputs)

    def _read(self, row: BatchRow) -> None:
        """Read a row's prompt, choose its first token, and join it to the batch."""
        prompt_cache = self._model.make_cache(kv_bits=self._memory.kv_bits)
        logits = prefill(
            row.inputs, self._model, prompt_cache, prefill_step_size=self._prefill_step_size
        )
        self.prompt_tokens += row.length
        if not row.tokens_left:
            row.end()
            return
        token, _ = row.chooser.choose(logits)
        if row.tokens_left == 1:
            self._take(row, cast(int, token.item()))
            return
        join_row(self._cache, prompt_cache)
        self._rows.append(row)
        self._tokens = mx.concatenate([self._tokens, token])
        self.most_rows = max(self.most_rows, len(self._rows))

    def _make_room(self) -> Generator[BatchAnswer, None, None]:
        """Have the last rows leave until there is memory for the next position of the others."""
        offsets = self._cache[0].offsets
        num_rows = len(self._rows)
        while num_rows and not self._memory.fits(num_rows, max(offsets[:num_rows]) + 1):
            num_rows -= 1
        leaving = self._rows[num_rows:]
        if not leaving:
            return
        self.is_short_of_memory = True
        tokens = cast(list[int], self._tokens[num_rows:].tolist())
        for row, token in zip(leaving, tokens, strict=True):
            self._take(row, token)
            if row is self._rows[0] and not row.is_done:  # even alone it has no room
                row.end(_OUT_OF_MEMORY)
            if row.is_done:
                yield row.answer
        self._waiting.extendleft(row for row in reversed(leaving) if not row.is_done)
        self._keep(range(num_rows))

    def _step(self) -> Generator[BatchAnswer, None, None]:
        """Launch the next step, then read the tokens of the one before."""
        logits = self._model.forward(self._tokens[:, None], [], (), self._cache)
        chosen = [row.chooser.choose(logits[index])[0] for index, row in enumerate(self._rows)]
        tokens, self._tokens = self._tokens, mx.concatenate(chosen)
        mx.async_eval(self._tokens)
        for row, token in zip(self._rows, cast(list[int], tokens.tolist()), strict=True):
            self._take(row, token)
            if row.is_done:
                yield row.answer
        kept = [index for index, row in enumerate(self._rows) if not row.is_done]
        if len(kept) < len(self._rows):
            self._keep(kept)

    def _take(self, row: BatchRow, token: int) -> None:
        row.add(token)
        self.generation_tokens += 1

    def _keep(self, indices: Sequence[int]) -> None:
        """Keep some rows of the batch."""
        keep_rows(self._cache, indices)
        self._tokens = self._tokens[mx.array(list(indices), mx.int32)]
        self._rows = [self._rows[index] for index in indices]
