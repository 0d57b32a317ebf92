"""A row of a batch: what was asked, and what has been answered so far."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_gemma4.errors import Gemma4Error
from mlx_gemma4.generation.generate import TokenChooser
from mlx_gemma4.generation.reply import FinishReason, Reply, ReplyPart
from mlx_gemma4.generation.sampling import LogitsProcessor, Sampler
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.messages import ToolCall


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """One prompt of many.

    Attributes:
        key: Whatever tells the caller which one it is.
        inputs: The prompt.
        sampler: Log-probabilities [1, V] to tokens [1], this prompt's own; None is greedy.
        logits_processors: Applied in order to the logits.
        max_tokens: -1 goes on to the end of the context, or of the memory for one row.
        stop: Texts that end the answer.
    """

    key: Any
    inputs: ModelInputs
    sampler: Sampler | None = None
    logits_processors: Sequence[LogitsProcessor] = ()
    max_tokens: int = -1
    stop: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class BatchAnswer:
    """One answer of many.

    Attributes:
        key: Of its request.
        text: The answer.
        thinking: What was thought before it.
        tool_calls: Functions that the model asks to be run.
        tokens: Every generated token, end-of-sequence included.
        finish_reason: "stop", "length", or "tool_calls".
        prompt_tokens: Positions of the prompt.
        notes: What was resized, resampled, cut, or not understood: one line each.
    """

    key: Any
    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BatchFailure:
    """A prompt that cannot be honoured.

    Attributes:
        key: Of its request.
        error: What is wrong with it.
    """

    key: Any
    error: Gemma4Error


class BatchRow:
    """A conversation of the batch, or one that waits.

    Args:
        request: What was asked.
        reply: Takes the tokens.
        context: Positions of prompt and answer at most.

    Attributes:
        chooser: Of its tokens.
    """

    def __init__(self, request: BatchRequest, reply: Reply, context: int) -> None:
        self.request = request
        self.chooser = TokenChooser(
            request.inputs.input_ids, request.sampler, request.logits_processors
        )
        self._reply = reply
        self._parts: list[ReplyPart] = []
        self._tokens: list[int] = []
        room = context - len(request.inputs)
        self._max_tokens = room if request.max_tokens < 0 else min(request.max_tokens, room)
        self._notes = request.inputs.notes

    @property
    def length(self) -> int:
        """Positions of prompt and answer so far."""
        return len(self.request.inputs) + len(self._tokens)

    @property
    def tokens_left(self) -> int:
        """Tokens that may still come."""
        return max(0, self._max_tokens - len(self._tokens))

    @property
    def inputs(self) -> ModelInputs:
        """What there is to read: the prompt, and the answer so far."""
        prompt = self.request.inputs
        tokens = np.array(self._tokens, prompt.input_ids.dtype)
        return replace(prompt, input_ids=np.concatenate([prompt.input_ids, tokens]))

    @property
    def has_begun(self) -> bool:
        """Whether there are tokens of an answer."""
        return bool(self._tokens)

    @property
    def is_done(self) -> bool:
        """Whether the answer is complete."""
        return bool(self._parts) and self._parts[-1].finish_reason is not None

    @property
    def answer(self) -> BatchAnswer:
        """The complete answer."""
        parts = self._parts
        assert parts[-1].finish_reason is not None
        return BatchAnswer(
            key=self.request.key,
            text="".join(part.text for part in parts),
            thinking="".join(part.thinking for part in parts),
            tool_calls=tuple(call for part in parts for call in part.tool_calls),
            tokens=tuple(self._tokens),
            finish_reason=parts[-1].finish_reason,
            prompt_tokens=len(self.request.inputs),
            notes=(*self._notes, *(note for part in parts for note in part.notes)),
        )

    def add(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)
        self._parts.append(self._reply.add(token))
        if not self.is_done and not self.tokens_left:
            self.end()

    def end(self, note: str = "") -> None:
        """No more tokens will come."""
        self._parts.append(self._reply.end())
        self._notes += (note,) * bool(note)
