"""Outputs of cells that need a GPU: recorded on one, kept beside those of the CPU, and dropped when their code changes.

Here no GPU is needed: the check for one is taken out, and the cell prints the same on any device. `tests/test_gpu.py`
does it for real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Book, made_once

PRETEND = """
import sys
from course import gpu_outputs
gpu_outputs.require_gpu = lambda: None
from course import compare, execute
compare.require_gpu = lambda: None
execute.DEVICE_CODE = "print('{\\"torch\\": \\"9.9\\", \\"gpu\\": \\"A pretended GPU\\"}')"
name, *options = sys.argv[1:]
sys.exit({"execute": execute, "compare": compare}[name].command([*options, "--device", "cuda"]))
"""
NEEDS = 'raise RuntimeError("only runs where there is a GPU")'


def on_gpu(book: Book, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `--device cuda` as if there were a GPU."""
    environment = {**os.environ, "COURSE_ROOT": str(book.root), "COURSE_ENVIRONMENT": "current"}
    command = [sys.executable, "-c", PRETEND, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def gpu_cell(book: Book) -> dict:
    """Return the cell of the small book that needs a GPU."""
    cells = json.loads(book.read("notebooks/tiny.ipynb"))["cells"]
    return next(cell for cell in cells if "gpu" in cell["metadata"].get("tags", []))


@pytest.fixture(scope="session")
def recorded_book(tmp_path_factory: pytest.TempPathFactory, executed_book: Book) -> Book:
    """Return the small book with the output of its GPU cell recorded; tests must not change it."""

    def make(root: Path) -> None:
        book = executed_book.copy(root)
        book.edit("chapters/tiny.md", NEEDS, "print('on the device', sum(numbers))")
        assert book.run("execute").returncode == 0
        done = on_gpu(book, "execute")
        assert done.returncode == 0, done.stderr

    return Book(made_once(tmp_path_factory, "recorded-book", make))


@pytest.fixture
def recorded(recorded_book: Book, tmp_path: Path) -> Book:
    """Return a copy of the book with a recorded GPU cell that a test may change."""
    return recorded_book.copy(tmp_path / "book")


@pytest.mark.parametrize("command", ["execute", "compare"])
def test_without_a_gpu_nothing_passes(book: Book, command: str):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = book.read("notebooks/tiny.ipynb")
    done = book.run(command, "--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.strip() == "course: --device cuda, but torch finds no GPU: nothing was executed or compared"
    assert book.read("notebooks/tiny.ipynb") == before


def test_recording_fills_in_the_gpu_cell_and_leaves_every_other_output(book: Book):
    book.edit("chapters/tiny.md", NEEDS, "print('on the device', sum(numbers))")
    assert book.run("execute").returncode == 0
    before = json.loads(book.read("notebooks/tiny.ipynb"))
    assert gpu_cell(book)["outputs"] == []
    assert on_gpu(book, "execute").returncode == 0
    cell = gpu_cell(book)
    assert cell["execution_count"]
    assert cell["outputs"][0]["text"] == ["on the device 3.75\n"]
    assert cell["metadata"].pop("recorded").keys() == {"device", "torch", "date", "key"}
    after = json.loads(book.read("notebooks/tiny.ipynb"))
    for old, new in zip(before["cells"], after["cells"], strict=True):
        assert new == old or "gpu" in new["metadata"]["tags"]
    assert after["metadata"] == before["metadata"]
    assert "nothing to execute" in on_gpu(book, "execute").stdout
    assert "nothing to execute" in book.run("execute").stdout


def test_a_recorded_output_stays_when_a_later_cell_or_the_text_changes(recorded: Book):
    recorded.edit("chapters/tiny.md", "stays.", "stays as it is.")
    recorded.edit("chapters/tiny.md", "## What a number is", "## What a number is\n\nMore.")
    assert recorded.run("execute").returncode == 0
    assert gpu_cell(recorded)["outputs"]
    recorded.edit("chapters/tiny.md", ":::{quiz}", "```{code-cell} ipython3\n'a later cell'\n```\n\n:::{quiz}")
    assert "notebooks/tiny.ipynb: executed" in recorded.run("execute").stdout
    assert gpu_cell(recorded)["outputs"]


def test_a_recorded_output_goes_when_code_before_it_changes(recorded: Book):
    recorded.edit("chapters/tiny.md", "[1.25, 2.5]", "[1.25, 2.75]")
    refused = on_gpu(recorded, "execute")
    assert refused.returncode != 0 and "run `make execute` first" in refused.stderr
    assert recorded.run("execute").returncode == 0
    assert gpu_cell(recorded)["outputs"] == [] and "recorded" not in gpu_cell(recorded)["metadata"]


@pytest.mark.slow
def test_a_comparison_on_a_gpu_looks_at_the_gpu_cells(recorded: Book):
    agrees = on_gpu(recorded, "compare")
    assert agrees.returncode == 0, agrees.stdout
    assert "1 cells that need a GPU, in 1 notebooks" in agrees.stdout and "5 passed" in agrees.stdout
    path = recorded.root / "notebooks" / "tiny.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"3.75"', '"1.75"'), encoding="utf-8")  # a cell that needs no GPU
    assert on_gpu(recorded, "compare").returncode == 0
    path.write_text(text.replace("on the device 3.75", "on the device 4.75"), encoding="utf-8")
    done = on_gpu(recorded, "compare")
    assert done.returncode != 0 and "1 failed, 4 passed" in done.stdout


def test_a_gpu_cell_that_was_never_recorded_fails_the_comparison_on_a_gpu(book: Book):
    book.edit("chapters/tiny.md", NEEDS, "print('on the device')")
    assert book.run("execute").returncode == 0
    done = on_gpu(book, "compare")
    assert done.returncode != 0
    assert "notebooks/tiny.ipynb: cells that need a GPU have never been recorded" in done.stderr


@pytest.mark.slow
def test_the_page_says_which_gpu_computed_an_output_or_that_none_did(recorded: Book):
    page = recorded.root / "_build" / "html" / "chapters" / "tiny.html"
    assert recorded.run("book").returncode == 0
    assert "Recorded on A pretended GPU, torch 9.9, 20" in page.read_text(encoding="utf-8")
    recorded.edit("chapters/tiny.md", "[1.25, 2.5]", "[1.25, 2.75]")
    assert recorded.run("execute").returncode == 0
    assert recorded.run("book").returncode == 0
    assert "No output recorded yet: this cell needs a GPU." in page.read_text(encoding="utf-8")
