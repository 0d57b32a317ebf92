"""Exceptions that a user can act on.

Every message says what is wrong (with the value), what is allowed, and what to do.  The command
line prints it without a traceback and exits with `exit_code`; anything else that escapes is a
defect of this project and exits with 1.
"""

from pathlib import Path


class Gemma4Error(Exception):
    """Base of everything raised for a mistake that the user can mend."""

    exit_code = 2


class CheckpointError(Gemma4Error):
    """A checkpoint cannot be found, read, or trusted."""


class ConfigError(CheckpointError):
    """config.json holds an impossible or unknown value."""


class InputError(Gemma4Error):
    """A prompt, picture, sound, or clip cannot be honoured."""


class MissingExtraError(InputError):
    """An input needs a library that an optional extra installs."""


class MemoryLimitError(Gemma4Error):
    """The work does not fit into this machine's memory."""


class OptionError(Gemma4Error):
    """An option has a value that is not allowed."""


class PromptCacheError(Gemma4Error):
    """A stored prompt cannot be read, trusted, or used with this model.

    Attributes:
        file: Which; None if none is to blame.
        is_foreign: The file is sound, but of another model or version.
    """

    file: Path | None = None
    is_foreign = False
