"""What goes to stderr: notes, a bar while a long prompt is read, and the account at the end."""

import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_ERASE_LINE = "\r\x1b[K"


def is_styled(stream: TextIO) -> bool:
    """Whether a stream is a terminal that takes control sequences."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not is_plain


def dim(text: str) -> str:
    """Return a text that stands back on stderr, if that is a terminal."""
    return f"{_DIM}{text}{_PLAIN}" if is_styled(sys.stderr) else text


def say(text: str, *, end: str = "\n") -> None:
    """Print on stderr what is not part of the answer."""
    print(dim(text), end=end, file=sys.stderr, flush=True)


class Waiting:
    """A line on the terminal that is gone as soon as there is something to read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._is_shown = False

    def show(self) -> None:
        """Show the line; nothing happens where stderr is no terminal."""
        if is_styled(sys.stderr) and not self._is_shown:
            say(self._text, end="")
            self._is_shown = True

    def hide(self) -> None:
        """Remove the line if it is shown."""
        if self._is_shown:
            print(_ERASE_LINE, end="", file=sys.stderr, flush=True)
            self._is_shown = False


class ProgressBar:
    """A bar for work that is done in pieces; only on a terminal, and only if it takes several.

    Its `update` is what `load` and `stream_generate` call with (done, total).

    Args:
        label: What is going on.
        least_total: Totals up to this are over at once and need no bar.
        in_bytes: The pieces are bytes.
    """

    def __init__(self, label: str, least_total: int = 0, *, in_bytes: bool = False) -> None:
        self._label = label
        self._least_total = least_total
        self._in_bytes = in_bytes
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` pieces are done."""
        if total <= self._least_total or not is_styled(sys.stderr):
            return
        if self._progress is None:
            self._progress = self._open(total)
        self._progress.update(self._progress.task_ids[0], completed=done)
        if done == total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _open(self, total: int) -> "Progress":
        # Here, since a prompt that is read at once need not pay for importing rich.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TimeRemainingColumn,
        )

        progress = Progress(
            "{task.description}",
            BarColumn(),
            DownloadColumn() if self._in_bytes else MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # it would take what belongs on stdout to stderr
        )
        progress.add_task(self._label, total=total)
        progress.start()
        return progress
