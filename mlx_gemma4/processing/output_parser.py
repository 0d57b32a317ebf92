"""What the model says, sorted while it arrives: thinking, answer, and tool calls.

Channels are told apart by token ids, never by text, so an answer that quotes `<|channel>` letter
by letter stays an answer.  Nothing is lost: a tool call that cannot be read comes as text of the
answer, with a note.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mlx_gemma4.messages import ToolCall
from mlx_gemma4.processing.tokenizer import Tokenizer
from mlx_gemma4.processing.tool_calls import parse_tool_calls

THINKING_LABEL = "thought\n"
"""First line of the thinking channel; it is the channel's name and no thought."""


class Channel(StrEnum):
    """Whom a piece of output is meant for."""

    THINKING = "thinking"
    ANSWER = "answer"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True)
class OutputPart:
    """A piece of output, as soon as it is certain.

    Attributes:
        channel: Where it belongs.
        text: Its words; for tool calls what the model wrote, without the markers around it.
        tool_calls: The calls, in a piece of that channel.
        note: What went wrong with it, if anything.
    """

    channel: Channel
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class ParsedOutput:
    """All output so far."""

    thinking: str
    answer: str
    tool_calls: tuple[ToolCall, ...]
    notes: tuple[str, ...]


class TextStream(Protocol):
    """Ids in, text out; `generation.detokenizer.Detokenizer` is one."""

    def add(self, token_id: int) -> str:
        """Return the text that this id completes."""
        ...

    def finish(self) -> str:
        """Return the text that was held back."""
        ...


class OutputParser:
    """Sorts generated ids into channels, starting in the one that the prompt ended in.

    Args:
        tokenizer: The checkpoint's tokenizer.
        new_text_stream: Makes a detokenizer; given the tokenizer.
        prompt_ids: The prompt.  A template may leave the thinking channel open at its end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        new_text_stream: Callable[[Tokenizer], TextStream],
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = new_text_stream(tokenizer)
        # None where a base checkpoint's own vocabulary lacks the token: no id equals it.
        tokens = tokenizer.special_tokens
        self._think_start, self._think_end, self._call_start, self._call_end, self._turn = (
            tokenizer.token_to_id(tokens[name])
            for name in ("soc_token", "eoc_token", "stc_token", "etc_token", "sot_token")
        )
        self._channel = Channel.ANSWER
        self._label = ""  # beginning of THINKING_LABEL, held back until the rest has come
        self._is_label_due = False
        self._call_ids: list[int] = []
        self._parts: list[OutputPart] = []
        self._resume(prompt_ids)

    @property
    def channel(self) -> Channel:
        """The channel that the next id belongs to, unless it changes the channel."""
        return self._channel

    @property
    def output(self) -> ParsedOutput:
        """All that was said since the prompt."""
        return ParsedOutput(
            thinking=self._joined(Channel.THINKING).strip("\n"),
            answer=self._joined(Channel.ANSWER),
            tool_calls=tuple(call for part in self._parts for call in part.tool_calls),
            notes=tuple(part.note for part in self._parts if part.note),
        )

    def add(self, token_id: int) -> tuple[OutputPart, ...]:
        """Return the pieces that this id completes; stop tokens are the caller's to keep away."""
        known = len(self._parts)
        if token_id == self._call_start:
            self._switch(Channel.TOOL_CALL)
        elif self._channel is Channel.TOOL_CALL:
            if token_id == self._call_end:
                self._switch(Channel.ANSWER)
            else:
                self._call_ids.append(token_id)
        elif token_id == self._think_start:
            self._switch(Channel.THINKING)
        elif token_id == self._think_end:
            self._switch(Channel.ANSWER)
        else:
            self._say(self._stream.add(token_id))
        return tuple(self._parts[known:])

    def finish(self) -> tuple[OutputPart, ...]:
        """Return what was held back, at the end of generation."""
        known = len(self._parts)
        self._leave(is_complete=False)
        self._channel = Channel.ANSWER  # so that a second call finds nothing
        return tuple(self._parts[known:])

    def _resume(self, prompt_ids: Sequence[int]) -> None:
        """Take over the state at the prompt's end: its last turn may have left something open."""
        openers = (self._think_start, self._call_start)
        for index in range(len(prompt_ids) - 1, -1, -1):
            token_id = int(prompt_ids[index])
            if token_id == self._turn:
                return
            if token_id in openers:
                for opened_id in prompt_ids[index:]:
                    self.add(int(opened_id))
                self._parts.clear()  # the prompt's own words
                return

    def _switch(self, channel: Channel) -> None:
        self._leave(is_complete=channel is Channel.ANSWER)
        self._channel = channel
        self._is_label_due = channel is Channel.THINKING

    def _leave(self, *, is_complete: bool) -> None:
        """End the current channel: give out what is held back, read the call if there is one."""
        if self._channel is Channel.TOOL_CALL:
            self._end_call(is_complete)
            return
        self._say(self._stream.finish())
        if self._is_label_due:
            self._is_label_due = False
            if self._label != THINKING_LABEL.strip():
                self._emit(self._label)
        self._label = ""

    def _end_call(self, is_complete: bool) -> None:
        text = self._tokenizer.decode(self._call_ids, skip_special_tokens=False)
        self._call_ids.clear()
        try:
            if not is_complete:
                raise ValueError("it was not finished")
            calls = parse_tool_calls(text)
        except ValueError as error:
            raw = self._tokenizer.special_tokens["stc_token"] + text
            raw += self._tokenizer.special_tokens["etc_token"] * is_complete
            note = f"tool call not understood, its text is kept: {error}"
            self._parts.append(OutputPart(Channel.ANSWER, raw, note=note))
        else:
            self._parts.append(OutputPart(Channel.TOOL_CALL, text, calls))

    def _say(self, text: str) -> None:
        if not self._is_label_due:
            self._emit(text)
            return
        self._label += text
        if THINKING_LABEL.startswith(self._label) and self._label != THINKING_LABEL:
            return  # not certain yet
        text, self._label = self._label.removeprefix(THINKING_LABEL), ""
        self._is_label_due = False
        self._emit(text)

    def _emit(self, text: str) -> None:
        if text:
            self._parts.append(OutputPart(self._channel, text))

    def _joined(self, channel: Channel) -> str:
        return "".join(part.text for part in self._parts if part.channel is channel)
