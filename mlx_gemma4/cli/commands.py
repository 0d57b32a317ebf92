"""Commands for typer that start fast and know in which order media were named."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from mlx_gemma4.errors import OptionError
from mlx_gemma4.messages import MEDIA_KINDS, MediaKind, MediaPart

_MEDIA_ORDER = "mlx_gemma4.media_order"


class Group(TyperGroup):
    """The program itself."""

    def make_parser(self, ctx: Any) -> Any:
        """Return the parser, the options for completion among its own by now."""
        convert_simply(self.get_params(ctx))
        return super().make_parser(ctx)


class Command(TyperCommand):
    """A command; `media_in_order` tells in which order its media were named.

    typer hands over one list for each option, which says nothing of the order among options.
    """

    def make_parser(self, ctx: Any) -> Any:
        """Return the parser, which notes the order while it parses."""
        convert_simply(self.get_params(ctx))
        parser = super().make_parser(ctx)
        parse_args = parser.parse_args

        def parse_and_note(args: list[str]) -> Any:
            values, rest, parameters = parse_args(args)
            ctx.meta[_MEDIA_ORDER] = [p.name for p in parameters if p.name in MEDIA_KINDS]
            return values, rest, parameters

        parser.parse_args = parse_and_note
        return parser


def media_in_order(
    context: typer.Context,
    image: Sequence[str] | None,
    audio: Sequence[str] | None,
    video: Sequence[str] | None,
) -> tuple[MediaPart, ...]:
    """Return the media as parts of a message, in the order of the command line."""
    waiting: dict[MediaKind, Iterator[str]] = {
        "image": iter(image or ()),
        "audio": iter(audio or ()),
        "video": iter(video or ()),
    }
    return tuple(MediaPart(kind, next(waiting[kind])) for kind in context.meta[_MEDIA_ORDER])


def convert_simply(parameters: Sequence[Any]) -> None:
    """Make text, numbers, and choices out of arguments without typer's own conversion.

    That goes through pydantic, whose import takes longer than all else between a command line and
    the command.  Other types, which the completion options have, still go there.
    """
    for parameter in parameters:
        # Once; and another version of typer may have no such attribute, and its own way.
        if hasattr(parameter, "type_descriptor") and "process_value" not in vars(parameter):
            parameter.process_value = partial(_process, parameter, parameter.process_value)


def _process(
    parameter: Any, process: Callable[[Any, Any], Any], context: typer.Context, value: Any
) -> Any:
    """Return an argument as the type that its parameter is annotated with; None if not given."""
    annotation = parameter.type_descriptor.annotation
    if value is None:
        if parameter.required:
            return process(context, value)  # which says that it is missing
        has_callback = parameter.callback is not None
        return parameter.callback(context, parameter, None) if has_callback else None
    if annotation is str:
        return value
    if annotation == list[str]:
        return list(value)
    if get_origin(annotation) is Literal:
        allowed = get_args(annotation)
        if value not in allowed:
            raise _refusal(parameter, value, f"allowed are {', '.join(allowed)}")
        return value
    if annotation in (int, float):
        return _number(parameter, annotation, value)
    return process(context, value)


def _number(parameter: Any, kind: type[int] | type[float], value: Any) -> int | float:
    least = parameter.type_descriptor.parameter_info.min
    allowed = f"allowed is a {'whole ' if kind is int else ''}number"
    if least is not None:
        allowed += f", {least} or more"
    try:
        number = kind(value)
    except ValueError:
        raise _refusal(parameter, value, allowed) from None
    if least is not None and number < least:
        raise _refusal(parameter, value, allowed)
    return number


def _refusal(parameter: Any, value: Any, allowed: str) -> OptionError:
    return OptionError(f"{parameter.opts[-1]} is {str(value)[:80]!r}; {allowed}")
