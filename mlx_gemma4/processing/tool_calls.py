"""Gemma's notation for tool calls: `call:NAME{k:<|"|>text<|"|>,n:2,l:[1,2]}`, read tolerantly.

Long agent prompts make models drift to JSON's quotes, parentheses, or `=`; those are read too.
What cannot be read for certain is a `ValueError`: better no call than one with wrong arguments.
"""

import json
import re
from typing import Any, NoReturn

from mlx_gemma4.messages import ToolCall

QUOTE = '<|"|>'

_MAX_DEPTH = 64
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_NAME = re.compile(r"[^\W\d][\w.\-/]*")
_KEY = re.compile(r"[^\s:=,{}\[\]()<>\"']+")
_PREFIX = re.compile(r"\s*call\s*:")
_SPACE = re.compile(r"\s*")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'(?=\s*(?:[,}\])]|$))", re.DOTALL)
_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)")  # 007 is a string: a number would lose its zeros
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NEXT_KEY = re.compile(r"\s\w+\s*[:=]")  # `1 b:2`: a comma is missing
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Return the calls between `<|tool_call>` and `<tool_call|>`, in order.

    Raises:
        ValueError: The text is no call, or what its arguments are is not certain.
    """
    return _Scanner(text).calls()


class _Scanner:
    """Reads from left to right; quoted text is opaque, whatever braces and commas it holds."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def calls(self) -> tuple[ToolCall, ...]:
        calls: list[ToolCall] = []
        while not self.is_at_end():
            calls.append(self.json_call() if self.peek() == "{" else self.call())
            self.take(",")
        if not calls:
            self.fail("a call")
        return tuple(calls)

    def call(self) -> ToolCall:
        prefix = _PREFIX.match(self.text, self.at)
        self.at = prefix.end() if prefix else self.at
        self.skip_space()
        name = _NAME.match(self.text, self.at)
        if name is None:
            self.fail("a function's name")
        self.at = name.end()
        has_arguments = self.peek() in ("{", "(")
        if not has_arguments and prefix is None:  # a sentence, not a call
            self.fail("'{'")
        return ToolCall(name[0], self.arguments(depth=0) if has_arguments else {})

    def json_call(self) -> ToolCall:
        """Read `{"name": ..., "arguments": {...}}`, which other models' prompts teach."""
        call = self.arguments(depth=0)
        name = call.get("name")
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(name, str) or not isinstance(arguments, dict):
            self.fail("a call")
        return ToolCall(name, arguments)

    def arguments(self, depth: int) -> dict[str, Any]:
        closer = self.open(depth)
        pairs: dict[str, Any] = {}
        while not self.close(closer):
            key = self.quoted()
            if key is None:
                match = _KEY.match(self.text, self.at)
                if match is None:
                    self.fail("an argument's name")
                key, self.at = match[0], match.end()
            if not (self.take(":") or self.take("=")):
                self.fail("':'")
            pairs[key] = self.value(depth + 1)
            self.separator(closer)
        return pairs

    def items(self, depth: int) -> list[Any]:
        closer = self.open(depth)
        values: list[Any] = []
        while not self.close(closer):
            values.append(self.value(depth + 1))
            self.separator(closer)
        return values

    def value(self, depth: int) -> Any:
        opener = self.peek()
        if opener == "{":
            return self.arguments(depth)
        if opener == "[":
            return self.items(depth)
        text = self.quoted()
        return self.bare() if text is None else text

    def quoted(self) -> str | None:
        """Read a string in Gemma's quotes, or in JSON's, or in single ones."""
        self.skip_space()
        if self.text.startswith(QUOTE, self.at):
            start = self.at + len(QUOTE)
            end = self.text.find(QUOTE, start)
            if end < 0:
                self.fail("the end of a string")
            self.at = end + len(QUOTE)
            return self.text[start:end]
        if match := _JSON_STRING.match(self.text, self.at):
            self.at = match.end()
            return json.loads(match[0], strict=False)
        if match := _SINGLE_QUOTED.match(self.text, self.at):
            self.at = match.end()
            return match[1]
        return None

    def bare(self) -> Any:
        """Read a value without quotes up to the comma or bracket that ends it."""
        self.skip_space()
        start = self.at
        closers: list[str] = []  # of brackets inside the value
        while self.at < len(self.text):
            character = self.text[self.at]
            if closers and character == closers[-1]:
                closers.pop()
            elif character in ",}])":
                if not closers:
                    break
                if character != ",":
                    self.fail(f"'{closers[-1]}'")
            elif character in _CLOSERS:
                closers.append(_CLOSERS[character])
            self.at += 1
        word = self.text[start : self.at].strip()
        if not word or closers or QUOTE in word or _NEXT_KEY.search(word):
            self.at = start
            self.fail("a value")
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        if _INTEGER.fullmatch(word):
            return int(word)
        return float(word) if _NUMBER.fullmatch(word) else word

    def open(self, depth: int) -> str:
        if depth > _MAX_DEPTH:
            self.fail(f"at most {_MAX_DEPTH} levels")
        closer = _CLOSERS[self.peek()]
        self.at += 1
        return closer

    def close(self, closer: str) -> bool:
        # A call may end without its last braces: the block's own end stands for them.
        return self.take(closer) or self.is_at_end()

    def separator(self, closer: str) -> None:
        if not self.take(",") and not self.is_at_end() and self.peek() != closer:
            self.fail(f"',' or '{closer}'")

    def take(self, mark: str) -> bool:
        self.skip_space()
        is_there = self.text.startswith(mark, self.at)
        self.at += len(mark) * is_there
        return is_there

    def peek(self) -> str:
        self.skip_space()
        return self.text[self.at : self.at + 1]

    def is_at_end(self) -> bool:
        self.skip_space()
        return self.at >= len(self.text)

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None  # it may be empty
        self.at = match.end()

    def fail(self, wanted: str) -> NoReturn:
        raise ValueError(f"character {self.at} should be {wanted}")
