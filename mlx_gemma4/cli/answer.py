"""An answer while it arrives: words on stdout, thoughts on stderr, an account at the end."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mlx_gemma4.cli.terminal import Waiting, say

if TYPE_CHECKING:
    from mlx_gemma4.generation.stream import GenerationResponse, GenerationResult

_COMMAND_START = time.perf_counter()  # this module is imported as soon as a command line is read


class Answer:
    """Shows the parts of an answer as they come, and keeps them.

    Ctrl-C ends it where it is; what was said so far stays.

    Args:
        is_shown: Whether words go to stdout at once.
        is_thinking_shown: Whether thoughts go to stderr.

    Attributes:
        is_interrupted: Whether somebody pressed Ctrl-C.
        first_token_s: Seconds from the start of the command to the first token.
    """

    def __init__(self, *, is_shown: bool = True, is_thinking_shown: bool = False) -> None:
        self.is_interrupted = False
        self.first_token_s: float | None = None
        self._is_shown = is_shown
        self._is_thinking_shown = is_thinking_shown
        self._parts: list[GenerationResponse] = []
        self._thinking = Waiting("thinking ...")
        self._open_line = ""  # the stream whose last line has no end yet

    def follow(self, responses: "Iterable[GenerationResponse]") -> None:
        """Show every part of an answer.

        Raises:
            KeyboardInterrupt: Ctrl-C, before there was anything to show.
        """
        try:
            for response in responses:
                if self.first_token_s is None:
                    self.first_token_s = time.perf_counter() - _COMMAND_START
                # Log-probabilities of a long answer take a megabyte a token.
                self._parts.append(dataclasses.replace(response, logprobs=None))
                self._show(response)
        except KeyboardInterrupt:
            if not self._parts:
                raise
            self.is_interrupted = True
        finally:
            self._thinking.hide()
            self._end_line()

    @property
    def result(self) -> "GenerationResult":
        """The answer so far, as a whole."""
        from mlx_gemma4.generation.stream import GenerationResult

        return GenerationResult.from_responses(self._parts)

    @property
    def account(self) -> str:
        """Tokens, speed, and memory in one line, and why the answer ended if it was cut."""
        result = self.result
        drafts = ""
        if result.speculate != "off":
            drafts = (
                f"{result.forwards} forwards, {result.accepted_tokens} of "
                f"{result.draft_tokens} draft tokens accepted; "
            )
        known = f" ({result.cached_tokens} known)" if result.cached_tokens else ""
        ends = {"length": "; cut at the limit of tokens", None: "; interrupted"}
        return (
            f"prompt {result.prompt_tokens} tokens{known}, {result.prompt_tps:.1f} tokens/s; "
            f"answer {result.generation_tokens} tokens, {result.generation_tps:.1f} tokens/s; "
            f"{drafts}first token after {self.first_token_s:.2f} s; "
            f"peak memory {result.peak_memory:.2f} GB{ends.get(result.finish_reason, '')}"
        )

    def as_document(self) -> dict[str, Any]:
        """Return everything about the answer in JSON's types."""
        return dataclasses.asdict(self.result) | {
            "first_token_s": self.first_token_s,
            "is_interrupted": self.is_interrupted,
        }

    def _show(self, response: "GenerationResponse") -> None:
        if response.thinking and self._is_thinking_shown:
            say(response.thinking, end="")
            self._open_line = "" if response.thinking.endswith("\n") else "stderr"
        elif response.thinking:
            self._thinking.show()
        if not self._is_shown:
            return
        if response.text:
            self._write(response.text)
        for call in response.tool_calls:
            self._end_line()
            self._write(json.dumps(dataclasses.asdict(call), ensure_ascii=False) + "\n")

    def _write(self, text: str) -> None:
        """Print words of the answer, whose first line starts below the thoughts."""
        self._thinking.hide()
        if self._open_line == "stderr":
            self._end_line()
        print(text, end="", flush=True)
        self._open_line = "" if text.endswith("\n") else "stdout"

    def _end_line(self) -> None:
        """End the line that is being written, so that the next text starts on its own."""
        if self._open_line:
            print(file=getattr(sys, self._open_line), flush=True)
            self._open_line = ""
