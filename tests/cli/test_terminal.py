import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mlx_gemma4.cli.terminal import ProgressBar, Waiting, say

_CONTROL = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])")


class Terminal:
    """A real terminal of 80 columns, read from its other end.

    Attributes:
        stream: What a program writes to.
        screen: Lines with something on them, without colours.
        is_cursor_shown: Whether it is.
    """

    def __init__(self) -> None:
        self._other_end, own_end = os.openpty()
        self.stream = os.fdopen(own_end, "w", encoding="utf-8")
        self._output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._other_end, 4096)
            except OSError:  # how Linux tells that the stream was closed
                return
            if not part:
                return
            self._output += part

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Become stderr; in the test itself, since pytest sets it between fixtures and test."""
        monkeypatch.setattr(sys, "stderr", self.stream)

    def close(self) -> None:
        self.stream.close()
        self._reader.join(10)
        os.close(self._other_end)

    @property
    def output(self) -> str:
        """All that has arrived by now."""
        return self._output.decode("utf-8", "replace")

    @property
    def screen(self) -> list[str]:
        return [line for line in map(str.rstrip, self._draw()) if line]

    @property
    def is_cursor_shown(self) -> bool:
        return self.output.rfind("\x1b[?25h") >= self.output.rfind("\x1b[?25l")

    def _draw(self) -> list[str]:
        """Return the lines that the control sequences leave."""
        lines, row, column = [""], 0, 0
        end = 0
        text = self.output
        for match in [*_CONTROL.finditer(text), None]:
            plain = text[end : match.start() if match else None]
            line = lines[row].ljust(column)
            lines[row] = line[:column] + plain + line[column + len(plain) :]
            column += len(plain)
            if match is None:
                break
            end = match.end()
            is_private, number, kind, break_ = match.groups()
            if break_ == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif break_ == "\r":
                column = 0
            elif kind == "A":
                row -= int(number or 1)
            elif kind == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            else:
                assert kind == "m" or is_private, f"unknown sequence {match[0]!r}"
        return lines


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait for what a terminal's other end or a bar's own thread does."""
    end = time.monotonic() + 5
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Return a terminal that stands in for stderr."""
    terminal = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    yield terminal
    monkeypatch.undo()
    terminal.close()


def assert_as_before(terminal: Terminal, screen: list[str]) -> None:
    """The bar is gone, the cursor is back, stderr is the terminal, and no thread still draws."""
    assert wait_for(lambda: terminal.is_cursor_shown and terminal.screen == screen), terminal.output
    assert sys.stderr is terminal.stream
    assert wait_for(lambda: not is_still_drawing()), threading.enumerate()


def is_still_drawing() -> bool:
    """Whether rich's thread is there; it ends at its next tick."""
    return any("Refresh" in type(thread).__name__ for thread in threading.enumerate())


def test_a_bar_is_there_until_the_work_is_done(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.connect(monkeypatch)
    with ProgressBar("reading the prompt", least_total=9) as bar:
        bar.update(0, 10)
        assert wait_for(lambda: any("0/10" in line for line in terminal.screen)), terminal.output
        bar.update(3, 10)
        assert wait_for(lambda: any("3/10" in line for line in terminal.screen)), terminal.output
        (line,) = terminal.screen
        assert line.startswith("reading the prompt ")
        assert not terminal.is_cursor_shown
        bar.update(10, 10)
        assert_as_before(terminal, [])


def test_bytes_are_shown_as_such(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.connect(monkeypatch)
    with ProgressBar("converting", in_bytes=True) as bar:
        bar.update(1_500_000, 24_000_000)
        assert wait_for(lambda: "1.5/24.0 MB" in "".join(terminal.screen)), terminal.output


@pytest.mark.parametrize("total", [0, 1, 10])
def test_what_is_over_at_once_has_no_bar(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    terminal.connect(monkeypatch)
    with ProgressBar("reading the prompt", least_total=10) as bar:
        for done in range(total + 1):
            bar.update(done, total)
        assert sys.stderr is terminal.stream
    say("end")
    assert wait_for(lambda: "end" in terminal.output)
    assert terminal.screen == ["end"]
    assert "reading" not in terminal.output


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_plain_terminal_gets_no_control_sequences(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    terminal.connect(monkeypatch)
    monkeypatch.setenv(name, value)
    with ProgressBar("reading the prompt") as bar:
        bar.update(1, 10)
    say("end")
    assert wait_for(lambda: "end" in terminal.output)
    assert terminal.output == "end\r\n"


def test_a_file_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would take any stream for a terminal
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with ProgressBar("reading the prompt") as bar:
        bar.update(1, 10)
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_as_it_was(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    terminal.connect(monkeypatch)

    def fail(bar: ProgressBar) -> None:
        with bar:
            bar.update(1, 10)
            assert wait_for(lambda: "quantizing" in "".join(terminal.screen)), terminal.output
            raise kind

    with pytest.raises(kind):
        fail(ProgressBar("quantizing"))
    assert_as_before(terminal, [])


def test_beside_a_bar_stdout_stays_stdout_and_notes_stay(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.connect(monkeypatch)
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    with ProgressBar("reading the prompt") as bar:
        bar.update(1, 10)
        print("the answer")
        say("a note")
    assert stdout.getvalue() == "the answer\n"
    assert_as_before(terminal, ["a note"])


def test_a_waiting_line_is_gone_when_there_is_something_to_read(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.connect(monkeypatch)
    waiting = Waiting("thinking")
    waiting.show()
    assert wait_for(lambda: terminal.screen == ["thinking"]), terminal.output
    waiting.show()
    waiting.hide()
    waiting.hide()
    say("end")
    assert wait_for(lambda: terminal.screen == ["end"]), terminal.output
    assert terminal.output.count("thinking") == 1
