"""A small book for the tests: real chapters, real kernels, built in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import filelock  # comes with torch
import pytest

from course.testing import require_chromium

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-browser", action="store_true", help="skip the tests that need Chromium")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("browser"):
            if config.getoption("--no-browser"):
                item.add_marker(pytest.mark.skip(reason="left out with --no-browser"))
            else:
                os.environ.setdefault("COURSE_CHROMIUM", require_chromium())


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass(frozen=True)
class Book:
    """A book in a folder, and a way to run the build tool on it."""

    root: Path

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m course …` on this book and return what it said."""
        environment = {**os.environ, "COURSE_ROOT": str(self.root), "COURSE_ENVIRONMENT": "current", **variables}
        return subprocess.run(
            [sys.executable, "-m", "course", *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that stands in a file exactly once."""
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def copy(self, root: Path) -> Book:
        """Return a copy of this book in another folder, which may be there and has to be empty."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("_build"), dirs_exist_ok=True)
        return Book(root)

    def read(self, name: str) -> str:
        """Return the text of a file."""
        return (self.root / name).read_text(encoding="utf-8")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` has filled, once for all processes that run tests; tests must not change it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has its own folder inside of one for all
        base = base.parent
    folder, done = base / name, base / f"{name}.made"
    with filelock.FileLock(base / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def executed_book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """Return the small book with its notebooks made; tests must not change it."""

    def make(root: Path) -> None:
        shutil.copytree(REPOSITORY / "tests" / "book", root, dirs_exist_ok=True)
        for name in ("_config.yml", "requirements.txt"):
            shutil.copy2(REPOSITORY / name, root / name)
        done = Book(root).run("execute")
        assert done.returncode == 0, done.stderr

    return Book(made_once(tmp_path_factory, "executed-book", make))


@pytest.fixture
def book(executed_book: Book, tmp_path: Path) -> Book:
    """Return a copy of the executed small book that a test may change."""
    return executed_book.copy(tmp_path / "book")
