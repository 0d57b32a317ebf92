"""The command `mlx-gemma4`, one module a subcommand: parse, call, print, and nothing else.

The answer goes to stdout alone; notes, progress, statistics, and errors go to stderr.  Modules here
import nothing slow before a command runs, so that `--help` and completion are immediate.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper

from mlx_gemma4.errors import Gemma4Error

PROGRAM = "mlx-gemma4"
OK, OUR_FAULT, INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: What follows the program's name; None takes it from `sys.argv`.

    Returns:
        0; 2 for a mistake that the user can mend; 1 for a defect of this project; 130 if
        interrupted.  A reader that closes the pipe, as `head` does, is no error.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an emoji shows its code, and the answer goes on.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here a full disk or a closed pipe is still explained
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return OK
    except Gemma4Error as error:
        _say(f"error: {error}")
        _show_traceback(arguments)
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _say(f"error: the disk is full ({error}); make room, or write elsewhere")
            _show_traceback(arguments)
            _discard_stdout()
            return Gemma4Error.exit_code
        _say(f"error: {type(error).__name__}: {error}")
        if not _show_traceback(arguments):
            _say(
                f"this is a defect of {PROGRAM}, not yours; run it with --verbose for the "
                "traceback, and report it"
            )
        return OUR_FAULT


def _run(arguments: list[str]) -> int:
    """Run a command line; typer's own exceptions end here, the others go on."""
    from typer.exceptions import TyperException

    from mlx_gemma4.cli.app import app

    try:
        code = app(arguments, prog_name=PROGRAM, standalone_mode=False)
    except TyperException as error:  # an unknown option, a value of the wrong type
        context = getattr(error, "ctx", None)
        path = context.command_path if context else PROGRAM
        _say(f"error: {error.format_message()}")
        _say(f"run '{path} --help' to see what is allowed")
        return error.exit_code
    except SystemExit as error:
        # typer turns a closed pipe into exit code 1.
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    return code if isinstance(code, int) else OK


def _show_traceback(arguments: Sequence[str]) -> bool:
    """Print the traceback of the current exception if the command line asks for it."""
    if "--verbose" not in arguments:
        return False
    traceback.print_exc()
    return True


def _say(line: str) -> None:
    """Print a line on stderr, if that is still open."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        return


def _discard_stdout() -> None:
    """Send what is still buffered nowhere, so that Python's own last flush does not fail."""
    assert sys.__stdout__ is not None
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
