"""The checkpoint's chat template: messages in, prompt text out, byte for byte as transformers.

A template is a program that comes with a checkpoint, so it runs in jinja2's sandbox, sees plain
JSON values only, and may write no more than `MAX_CHARACTERS`.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.messages import Message, Part, TextPart
from mlx_gemma4.processing.json_file import read_json

if TYPE_CHECKING:  # jinja2 takes 30 ms to import, and base models need no template
    from jinja2 import Template

MAX_CHARACTERS = 1 << 24
"""Characters that a rendered prompt may have: 64 for each of the model's 262144 positions."""

_MAX_TEMPLATE_BYTES = 1 << 20


class ChatTemplate:
    """One checkpoint's template, compiled when it is first rendered.

    Args:
        source: The template's text.
        variables: What templates expect beside the messages: `bos_token` and its like.
        name: What to call it in error messages.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str] | None = None, name: str = "chat_template"
    ) -> None:
        self.source = source
        self.name = name
        self._variables = dict(variables or {})

    @classmethod
    def from_folder(
        cls, folder: Path, variables: Mapping[str, str] | None = None
    ) -> "ChatTemplate | None":
        """Return the checkpoint's template, or None for a base model, which has none.

        It is in chat_template.jinja, or in older conversions under "chat_template" in
        chat_template.json or tokenizer_config.json.

        Raises:
            CheckpointError: A file cannot be read, or holds something else.
        """
        path = folder / "chat_template.jinja"
        if path.is_file():
            try:
                if (size := path.stat().st_size) > _MAX_TEMPLATE_BYTES:
                    raise CheckpointError(
                        f"{path} has {size:,} bytes; at most {_MAX_TEMPLATE_BYTES:,} are read; "
                        "fetch it again"
                    )
                return cls(path.read_text(encoding="utf-8"), variables, path.name)
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"cannot read {path}: {error}; fetch it again") from None
        for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
            if not path.is_file():
                continue
            source = read_json(path).get("chat_template")
            if isinstance(source, list):  # several, by name
                named = [i for i in source if isinstance(i, dict) and i.get("name") == "default"]
                source = named[-1].get("template") if named else None
            if isinstance(source, str):
                return cls(source, variables, f"chat_template in {path.name}")
        return None

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads: what it knows of tools, thinking, and so on."""
        from jinja2 import meta

        environment = self._template.environment
        return frozenset(meta.find_undeclared_variables(environment.parse(self.source)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the conversation as the text that the model was trained to continue.

        Args:
            messages: The conversation.
            tools: Declarations in the form of `messages.parse_tools`.
            thinking: Ask the model to think before it answers.
            add_generation_prompt: End with the beginning of the model's turn.

        Raises:
            InputError: The template refuses the conversation, or knows neither tools nor thinking.
            CheckpointError: The template itself is broken.
        """
        from jinja2 import TemplateError

        for is_asked, variable, what in (
            (thinking, "enable_thinking", "thinking"),
            (tools, "tools", "tools"),
        ):
            if is_asked and variable not in self.variables:
                raise InputError(f"{self.name} of this checkpoint knows no {what}; leave it off")
        from mlx_gemma4.processing.template_budget import budget

        pieces: list[str] = []
        length = 0
        try:
            with budget(len(messages)):
                for piece in self._template.generate(
                    messages=[_as_template_message(message) for message in messages],
                    tools=list(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    enable_thinking=thinking,
                    **self._variables,
                ):
                    length += len(piece)
                    if length > MAX_CHARACTERS:
                        raise InputError(
                            f"the prompt is longer than {MAX_CHARACTERS} characters; shorten it"
                        )
                    pieces.append(piece)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{self.name} refuses the conversation: {error}") from error
        except (AttributeError, RecursionError, MemoryError) as error:
            raise InputError(f"{self.name} fails on the conversation: {error}") from error
        return "".join(pieces)

    @cached_property
    def _template(self) -> "Template":
        from jinja2 import TemplateSyntaxError

        from mlx_gemma4.processing.template_budget import budget
        from mlx_gemma4.processing.template_sandbox import make_environment

        if len(self.source) > _MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{self.name} is longer than {_MAX_TEMPLATE_BYTES} characters")
        try:
            with budget():  # constants are computed now
                return make_environment().from_string(self.source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"{self.name} is broken at line {error.lineno}: {error}; fetch it again"
            ) from error
        # Python's own limits on what jinja2 makes of it, such as 20 loops in each other; and halves
        # of surrogate pairs.
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise CheckpointError(f"{self.name} cannot be compiled: {error}") from error


def _as_template_message(message: Message) -> dict[str, Any]:
    """Return a message with the keys that templates read; absent ones stay absent.

    Source: transformers, processing_utils._normalize_conversations (None is dropped) and
    chat_template_utils._alias_reasoning_fields (reasoning under all its names).
    """
    values: dict[str, Any] = {"role": message.role}
    if message.content is not None:
        is_text = isinstance(message.content, str)
        values["content"] = (
            message.content if is_text else [_as_template_part(part) for part in message.parts]
        )
    if message.reasoning is not None:
        values |= dict.fromkeys(("thinking", "reasoning_content", "reasoning"), message.reasoning)
    if message.tool_calls:
        values["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
                **({} if call.id is None else {"id": call.id}),
            }
            for call in message.tool_calls
        ]
    if message.tool_responses:
        values["tool_responses"] = [
            {"name": response.name, "response": response.response}
            for response in message.tool_responses
        ]
    for key, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            values[key] = value
    return values


def _as_template_part(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": part.kind}
