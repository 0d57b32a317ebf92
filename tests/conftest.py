"""What every test shares: fixtures, the environment, and the reasons to skip a test."""

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import write_checkpoint

pytest_plugins = ["metal_sim.plugin"]

REPOSITORY = Path(__file__).resolve().parent.parent
GOOGLE_CHECKPOINT = REPOSITORY.parent / "shared" / "checkpoint" / "it"
GOOGLE_FILES = ("config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json")

# Before anything imports huggingface_hub, which reads this once: no test reaches the Hub by
# accident, nor finds what the user has downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "mlx-gemma4-no-hub")
for variable in ("MLX_GEMMA4_MODEL", "MLX_GEMMA4_KERNELS"):
    os.environ.pop(variable, None)
# On a Mac loading a model checks its kernels and times them: not into the user's own file.
os.environ["MLX_GEMMA4_CACHE"] = str(Path(tempfile.gettempdir()) / "mlx-gemma4-test-cache")
# A shell ignores Ctrl-C for what it starts in the background, and for what that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def is_ci() -> bool:
    """Whether a missing prerequisite is a failure, not a reason to skip."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def missing_google_files() -> str | None:
    """Say which of Google's files are not beside the clone; None if all are."""
    missing = [name for name in GOOGLE_FILES if not (GOOGLE_CHECKPOINT / name).is_file()]
    return f"{', '.join(missing)} not in {GOOGLE_CHECKPOINT}" if missing else None


def missing_packages(*names: str) -> str | None:
    """Say which packages are not installed, without importing any; None if all are."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed: make parity" if missing else None


def missing_gpu() -> str | None:
    """Say that MLX has no Metal device here; None if it has."""
    import mlx.core as mx

    return None if mx.metal.is_available() else "no Apple GPU"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker asks for something that is not here, and say what."""
    if item.get_closest_marker("google_files") and (reason := missing_google_files()):
        # On CI they are always there: an absence there would hide that these tests do not run.
        (pytest.fail if is_ci() else pytest.skip)(reason)
    if item.get_closest_marker("parity") and (reason := missing_packages("torch", "transformers")):
        pytest.skip(reason)
    if item.get_closest_marker("metal") and (reason := missing_gpu()):
        pytest.skip(reason)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator that draws the same in every run."""
    return np.random.default_rng(20260603)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the top folder of the clone."""
    return REPOSITORY


@pytest.fixture(scope="session")
def google_checkpoint() -> Path:
    """Return the folder of Google's config, tokenizer and template; the test is `google_files`."""
    if reason := missing_google_files():
        (pytest.fail if is_ci() else pytest.skip)(reason)
    return GOOGLE_CHECKPOINT


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random float32 checkpoint of 11 M parameters; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
