"""A stand-in for downloads from the Hugging Face Hub, and the log of what was asked of it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import DryRunError

NAME = "google/gemma-4-12B-it"
_COMMIT = "commit"


class FakeHub:
    """Stands in for huggingface_hub.snapshot_download.

    Args:
        repository: The folder whose files `NAME` has.
        cache: Of the Hub's library.

    Attributes:
        folder: Where downloads come to lie.
        planned: Names of files whose size was asked for, in order.
        fetched: Names of files that were downloaded, in order.
        size: Of every file, as the Hub tells it; None is the truth.
        is_reachable: Whether there is a connection.
        error: Raised by downloads.
    """

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.folder = cache / "snapshots" / _COMMIT
        self.planned: list[str] = []
        self.fetched: list[str] = []
        self.size: int | None = None
        self.is_reachable = True
        self.error: BaseException | None = None

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the Hub, which tests are otherwise kept from."""
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.folder.parent.parent))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None = None,
        allow_patterns: Sequence[str],
        dry_run: bool = False,
        tqdm_class: object = None,
    ) -> Any:
        """Copy files from the repository into the cache, or describe them."""
        assert name == NAME
        assert revision in (None, _COMMIT)
        files = [file for pattern in allow_patterns for file in self.repository.glob(pattern)]
        if dry_run:
            if not self.is_reachable:
                raise DryRunError("no connection")
            self.planned += [file.name for file in files]
            return [self._describe(file) for file in files]
        if self.error is not None:
            raise self.error
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if not (self.folder / file.name).exists():
                self.fetched.append(file.name)
                shutil.copy(file, self.folder)
        return str(self.folder)

    def _describe(self, file: Path) -> SimpleNamespace:
        return SimpleNamespace(
            filename=file.name,
            file_size=self.size or file.stat().st_size,
            will_download=not (self.folder / file.name).exists(),
            commit_hash=_COMMIT,
            local_path=str(self.folder / file.name),
        )
