"""jinja2's sandbox with the settings and functions that chat templates rely on.

Imported by the first template that is rendered: jinja2 takes 30 ms.

Source: transformers, chat_template_utils._cached_compile_jinja_template.
"""

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_REPEATED = 1 << 20  # length of what `"a" * n` may make inside a template
_MAX_EXPONENT = 64  # of `2 ** n`, likewise


def make_environment() -> Environment:
    """Return an environment for templates of strangers."""
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


class Sandbox(ImmutableSandboxedEnvironment):
    """Hides what leads out of a template, and refuses what would fill the memory at a stroke."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator, unless it is huge."""
        left_size, right_size = (
            len(x) if isinstance(x, str | list | tuple) else x for x in (left, right)
        )
        is_repeated = isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
        is_huge = (
            right_size > _MAX_EXPONENT
            if operator == "**"
            else is_repeated and left_size * right_size > _MAX_REPEATED
        )
        if is_huge:
            raise SecurityError(f"{operator} would make something huge")
        return super().call_binop(context, operator, left, right)


class GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Any) -> nodes.Node:
        """Return the block's body."""
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


def raise_exception(message: str) -> NoReturn:
    """Refuse the conversation, in the template's own words."""
    raise TemplateError(message)


def strftime_now(layout: str) -> str:
    """Return the time now."""
    return datetime.now().strftime(layout)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
