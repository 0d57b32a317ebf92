"""Reply: tokens of one answer sorted into thinking, words, and calls, up to where it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_gemma4.generation.detokenizer import Detokenizer
from mlx_gemma4.generation.stop import StopStrings
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.messages import ToolCall
from mlx_gemma4.processing.output_parser import Channel, OutputParser, OutputPart
from mlx_gemma4.processing.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ReplyPart:
    """What one token added.

    Attributes:
        text: New words of the answer.
        thinking: New words of the thinking channel.
        tool_calls: Calls that are complete now.
        notes: What was not understood.
        finish_reason: Why this is the last part; what was held back came with it.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    notes: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None


class Reply:
    """Turns the tokens of an answer into its parts.

    Args:
        inputs: The prompt, which may have left a channel open.
        tokenizer: The checkpoint's.
        eos_token_ids: Any of these ends the answer and is not part of it.
        stop: Any of these texts in the answer ends it and is not part of it.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        self._parser = OutputParser(tokenizer, Detokenizer, inputs.input_ids.tolist())
        self._stopper = StopStrings(stop)
        self._stops = frozenset(eos_token_ids)
        self._has_tool_calls = False

    def add(self, token: int) -> ReplyPart:
        """Return what a token adds; the last part has a `finish_reason`."""
        if token in self._stops:
            return self._part(self._parser.finish(), "stop")
        return self._part(self._parser.add(token))

    def end(self) -> ReplyPart:
        """Return what was held back: no more tokens will come."""
        return self._part(self._parser.finish(), "length")

    def _part(
        self, outputs: Sequence[OutputPart], finish_reason: FinishReason | None = None
    ) -> ReplyPart:
        text = "".join(self._stopper.add(o.text) for o in outputs if o.channel is Channel.ANSWER)
        calls = tuple(call for output in outputs for call in output.tool_calls)
        self._has_tool_calls |= bool(calls)
        if self._stopper.is_stopped:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._stopper.finish()
            if finish_reason == "stop" and self._has_tool_calls:
                finish_reason = "tool_calls"
        return ReplyPart(
            text=text,
            thinking="".join(o.text for o in outputs if o.channel is Channel.THINKING),
            tool_calls=calls,
            notes=tuple(output.note for output in outputs if output.note),
            finish_reason=finish_reason,
        )
