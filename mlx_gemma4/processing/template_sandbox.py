"""jinja2's sandbox with the settings and functions that chat templates rely on.

Its templates pay for what they make out of a `template_budget`.  Imported by the first template
that is rendered: jinja2 takes 30 ms.

Source: transformers, chat_template_utils._cached_compile_jinja_template.
"""

import functools
import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from mlx_gemma4.processing.template_budget import (
    bounded,
    current,
    each_step,
    paid,
    size_of,
    written,
)

_MAX_REPEATED = 1 << 20  # length of what `"a" * n` may make
_MAX_EXPONENT = 64  # of `2 ** n`
_MAX_BITS = 4096  # of a product
_MAX_INDENT = 16  # of JSON, and length of its separators
_SEQUENCES = str | list | tuple
_EACH, _WHOLE = "each_step", "whole"  # filters that `_Bounds` writes


def make_environment() -> Environment:
    """Return an environment for templates of strangers; a `budget` must surround its use."""
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, loopcontrols],
        finalize=written,
    )
    environment.filters["tojson"] = to_json  # jinja2's own escapes <, >, & for HTML
    environment.filters = {
        name: bounded(name, function) for name, function in environment.filters.items()
    } | {_EACH: each_step, _WHOLE: written}
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=dict,
        namespace=TemplateNamespace,
    )
    del environment.globals["lipsum"]  # text of any length
    return environment


class Sandbox(ImmutableSandboxedEnvironment):
    """Hides what leads out of a template, and has it pay for what it makes."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator, unless it is huge."""
        if operator == "%" and isinstance(left, str):
            values = right if isinstance(right, tuple) else (right,)
            return paid(lambda: left % right, left, values, is_stretching=True, is_format=True)
        sizes = [size_of(n) if isinstance(n, _SEQUENCES) else n for n in (left, right)]
        if isinstance(left, _SEQUENCES) or isinstance(right, _SEQUENCES):
            is_huge = operator == "*" and sizes[0] * sizes[1] > _MAX_REPEATED
        else:
            is_huge = operator == "**" and right > _MAX_EXPONENT
            if isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
                is_huge = is_huge or bits > _MAX_BITS
        if is_huge:
            raise SecurityError(f"{operator} would make something huge")
        if operator == "+" and isinstance(left, list):
            current().check(8 * (len(left) + size_of(right)))  # bytes of references
        result = super().call_binop(context, operator, left, right)
        current().spend(size_of(result))
        return result

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Return the result of a call; of the methods, those of texts may make much of little."""
        run = functools.partial(super().call, __context, __obj, *args, **kwargs)
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps those of str.format
        text = getattr(method, "__self__", None)
        if not isinstance(text, str):
            return paid(run, None, ())
        is_format = getattr(method, "__name__", "") in ("format", "format_map")
        values = (*args, *kwargs.values())
        return paid(run, text, values, is_stretching=True, is_format=is_format)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute; that of a namespace quickly, since templates ask for it most."""
        if type(obj) is TemplateNamespace and not attribute.startswith("_"):
            try:
                return Namespace.__getattribute__(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounds().visit(source), *args, **kwargs)


class _Bounds(NodeTransformer):
    """Has loops and `~`, of which the sandbox does not hear, go through filters of ours."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # jinja2's name
        self.generic_visit(node)
        # What stands between the tags is written as it is, once a step.
        num_characters = sum(len(raw.data) for raw in node.find_all(nodes.TemplateData))
        weight = nodes.Const(num_characters, lineno=node.lineno)
        node.iter = self._filter(_EACH, node.iter, [weight])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [self._filter(_WHOLE, part, []) for part in node.nodes]
        return self._filter(_WHOLE, node, [])

    def _filter(self, name: str, node: Any, args: list[nodes.Expr]) -> nodes.Filter:
        made = nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)
        made.set_environment(node.environment)
        return made


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
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    widths = (width, *map(len, separators or ()))
    if max(widths) > _MAX_INDENT:
        raise SecurityError(f"JSON is indented, and its items set apart, by at most {_MAX_INDENT}")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
