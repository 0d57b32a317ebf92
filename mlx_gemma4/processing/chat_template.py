"""The checkpoint's chat template: messages in, prompt text out, byte for byte as transformers.

A template is a program that comes with a checkpoint, so it runs in jinja2's sandbox, sees plain
JSON values only, and may write no more than `MAX_CHARACTERS`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.messages import Message, Part, TextPart
from mlx_gemma4.processing.json_file import read_json

if TYPE_CHECKING:  # jinja2 takes 30 ms to import, and base models need no template
    from jinja2 import Environment, Template

MAX_CHARACTERS = 1 << 24
"""Characters that a rendered prompt may have: 64 for each of the model's 262144 positions."""

_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_REPEATED = 1 << 20  # length of what `"a" * n` may make inside a template
_MAX_EXPONENT = 64  # of `2 ** n`, likewise


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
                return cls(path.read_text(encoding="utf-8"), variables, path.name)
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"cannot read {path}: {error}; fetch it again") from None
        for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
            if not path.is_file():
                continue
            source = read_json(path).get("chat_template")
            if isinstance(source, list):  # several, by name
                named = {i.get("name"): i.get("template") for i in source if isinstance(i, dict)}
                source = named.get("default")
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
        pieces: list[str] = []
        length = 0
        try:
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

        if len(self.source) > _MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{self.name} is longer than {_MAX_TEMPLATE_BYTES} characters")
        try:
            return _make_environment().from_string(self.source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"{self.name} is broken at line {error.lineno}: {error}; fetch it again"
            ) from error


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


def _make_environment() -> "Environment":
    """Return jinja2's sandbox with the settings and functions that chat templates rely on.

    Source: transformers, chat_template_utils._cached_compile_jinja_template.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class GenerationTag(Extension):
        """{% generation %} marks the assistant's words for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class TemplateNamespace(Namespace):
        """A namespace that holds no name with which the sandbox could be left."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            Namespace.__init__(self)
            for name, value in dict(*rest, **kwargs).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace may not hold {name!r}")
            Namespace.__setitem__(self, name, value)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            # A tiny template must not be able to fill the memory.
            left_size, right_size = (
                len(x) if isinstance(x, str | list | tuple) else x for x in (left, right)
            )
            is_repeated = isinstance(left, str | list | tuple) or isinstance(
                right, str | list | tuple
            )
            is_huge = (
                right_size > _MAX_EXPONENT
                if operator == "**"
                else is_repeated and left_size * right_size > _MAX_REPEATED
            )
            if is_huge:
                raise SecurityError(f"{operator} would make something huge")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(layout: str) -> str:
        return datetime.now().strftime(layout)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json  # jinja2's own escapes <, >, & for HTML
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=dict,
        namespace=TemplateNamespace,
    )
    return environment
