"""A small random checkpoint, and the command line run inside this process."""

from pathlib import Path

import pytest
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

SMALL = Size(64, 128, 6, 2, 1, 64, 128, 32, 1024, num_soft_tokens=70, num_frames=4)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random checkpoint that knows 26 letters; not to be changed."""
    folder = write_checkpoint(
        tmp_path_factory.mktemp("end_to_end") / "small", SMALL, has_tokenizer=False
    )
    return write_tiny_checkpoint(folder)
