"""What a chat template may use up: what it makes, and time, for one prompt.

jinja2's sandbox bounds neither.  What could be large is estimated before it is made, and counted
afterwards.
"""

import functools
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_MADE = 1 << 28
"""Characters and items that a template may make in all, 16 for each that a prompt may have."""

MAX_SECONDS, SECONDS_A_MESSAGE = 2.0, 0.005
"""Of the processor, for one prompt, and for each of its messages beside that.

Google's template looks at all later messages for each call of a tool: 4,000 messages take 5 s.
"""

_LONG_NUMBER = re.compile(r"\d{6}")  # a width of fields
# Filters that may make more than they are given, by their arguments.
_STRETCHING = {"batch", "center", "format", "indent", "join", "replace", "slice", "wordwrap"}
# Filters that only look at a list, or give its items on: they do not walk what is in them.
_LOOKING = {"attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items"}
_LOOKING |= {"last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr"}
_LOOKING |= {"reverse", "select", "selectattr", "slice", "sort", "sum", "unique"}


class Budget:
    """What a template has left of what it may make, and of time.

    Args:
        num_messages: Of the conversation.
    """

    def __init__(self, num_messages: int = 0) -> None:
        self._left = MAX_MADE
        self._seconds = MAX_SECONDS + SECONDS_A_MESSAGE * num_messages
        self._end_s = time.thread_time() + self._seconds
        self._num_checks = 0

    def check_time(self) -> None:
        """Raise SecurityError if the time is over."""
        self._num_checks += 1
        # To ask for the time takes longer than most of what is paid for.
        if self._num_checks % 16 == 0 and time.thread_time() > self._end_s:
            raise SecurityError(f"it takes longer than {self._seconds:g} s")

    def check(self, size: int) -> None:
        """Raise SecurityError if there is no room for something so large."""
        self.check_time()
        if size > self._left:
            raise SecurityError(f"it makes more than {MAX_MADE:,} characters on the way")

    def spend(self, size: int) -> None:
        """Take off what has been made."""
        self.check(size)
        self._left -= size

    def weigh(self, value: Any) -> int:
        """Return the characters and items of a value, however deep; at most what is left and 1."""
        total, waiting = 0, [value]
        while waiting and total <= self._left:
            self.check_time()
            value = waiting.pop()
            total += size_of(value)
            if isinstance(value, dict):
                value = [*value.keys(), *value.values()]
            if isinstance(value, list | tuple):
                waiting += value
        return total


_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget(num_messages: int = 0) -> Generator[None]:
    """Give the template in the block a budget; see `Budget`."""
    token = _budget.set(Budget(num_messages))
    try:
        yield
    finally:
        _budget.reset(token)


def current() -> Budget:
    """Return the budget of the template that is running."""
    return _budget.get()


def size_of(value: Any) -> int:
    """Return the length of a text or a container, and 1 for all else."""
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 1


def each_step(values: Iterable[Any], num_characters: int) -> Iterator[Any]:
    """Yield what a loop goes over."""
    own = current()
    for value in values:
        own.spend(num_characters)
        yield value


def written(value: Any) -> Any:
    """Return a value that is about to be written."""
    own = current()
    own.spend(own.weigh(value))
    return value


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that pays for what it makes."""
    first = int(hasattr(function, "jinja_pass_arg"))  # before the value: jinja2's context

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[first:]
        return paid(
            functools.partial(function, *args, **kwargs),
            None if name in _LOOKING - _STRETCHING else value,
            (*others, *kwargs.values()),
            is_stretching=name in _STRETCHING,
            is_format=name == "format",
        )

    return call


def paid(
    run: Callable[[], Any],
    value: Any,
    others: Sequence[Any],
    *,
    is_stretching: bool = False,
    is_format: bool = False,
) -> Any:
    """Return what is made of a value, after a look at how much that could be."""
    own = current()
    most = own.weigh(value)
    if is_stretching:
        numbers = (abs(n) if isinstance(n, int) else own.weigh(n) for n in others)
        most = max(most, 1) * max(numbers, default=1)
    if is_format and _LONG_NUMBER.search(str(value)):
        raise SecurityError("it asks for a very wide field")
    own.check(most)
    made = run()
    # What is made item by item later on has no size yet.
    own.spend(most if isinstance(made, Iterator) else size_of(made))
    return made
