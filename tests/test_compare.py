"""What the comparison lets through, and what it does not."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
from conftest import Book

from course.compare import alike, picture_problem


@pytest.mark.parametrize(
    ("recorded", "computed"),
    [
        ("loss 0.0852", "loss 0.0853"),
        ("tensor([0.1234, 2.0000])", "tensor([0.1235, 2.0001])"),
        ("1.0000e-03", "1.0001e-03"),
        ("12345.6", "12346.0"),
        ("-0.0000", "0.0000"),
    ],
)
def test_decimals_may_differ_by_the_tolerance(recorded: str, computed: str):
    assert alike(recorded, computed)


@pytest.mark.parametrize(
    ("recorded", "computed"),
    [
        ("loss 0.0852", "loss 0.0856"),
        ("7 of 10", "8 of 10"),
        ("torch.Size([2, 3])", "torch.Size([3, 2])"),
        ("accuracy 0.97", "precision 0.97"),
        ("0.085", "0.0852"),
        ("0.5 0.5", "0.5"),
        ("nan", "0.0"),
    ],
)
def test_text_whole_numbers_and_larger_differences_may_not(recorded: str, computed: str):
    assert not alike(recorded, computed)


def test_a_cell_may_set_its_own_tolerance():
    assert alike("0.51", "0.52", tolerance=0.05)
    assert not alike("0.51", "0.72", tolerance=0.05)


def test_a_picture_has_to_show_something(tmp_path: Path):
    import matplotlib.image
    import numpy

    for name, pixels in (("empty", numpy.ones((4, 4, 3))), ("full", numpy.eye(4)[..., None].repeat(3, 2))):
        matplotlib.image.imsave(tmp_path / f"{name}.png", pixels)
    encoded = {name: base64.b64encode((tmp_path / f"{name}.png").read_bytes()).decode() for name in ("empty", "full")}
    assert picture_problem(encoded["full"]) is None
    assert "empty" in (picture_problem(encoded["empty"]) or "")
    assert "decoded" in (picture_problem("AAAA") or "")


def change(book: Book, old: str, new: str) -> None:
    """Change a recorded output, as if the code had printed something else on another day."""
    path = book.root / "notebooks" / "tiny.ipynb"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.slow
def test_an_unchanged_notebook_agrees_and_its_gpu_cell_is_counted_as_skipped(book: Book):
    done = book.run("compare")
    assert done.returncode == 0, done.stdout
    assert "7 passed, 1 skipped" in done.stdout
    assert "needs a GPU" in done.stdout
    assert "1 exempt" in done.stdout and "the time of day" in done.stdout


@pytest.mark.slow
def test_every_changed_output_is_found(book: Book):
    for old, new in (('"3.75"', '"3.76"'), ('"division by zero"', '"another error"'), ("image/png", "image/gif")):
        change(book, old, new)
    done = book.run("compare")
    assert done.returncode == 2
    assert "3 failed, 4 passed, 1 skipped" in done.stdout, done.stdout
    assert "make execute" in done.stderr


@pytest.mark.slow
def test_a_cell_that_nobody_looked_at_is_missed(book: Book, monkeypatch: pytest.MonkeyPatch):
    # The root of pytest decides what its cells are called.
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--rootdir={book.root} --deselect solutions/tiny.ipynb")
    done = book.run("compare")
    assert done.returncode == 2
    assert re.search(r"\d cells were compared or skipped, there are 8", done.stdout), done.stdout


@pytest.mark.slow
def test_a_deprecation_warning_fails_the_notebook(book: Book):
    book.edit("chapters/tiny.md", "sum(numbers)", "import warnings\nwarnings.warn('old', FutureWarning)")
    done = book.run("execute")
    assert done.returncode == 2
    assert "FutureWarning: old" in done.stderr


@pytest.mark.slow
def test_a_notebook_over_its_budget_of_memory_fails_and_a_slow_machine_is_only_named(book: Book):
    book.edit("chapters/tiny.md", "budget: {seconds: 60, memory: 2000", "budget: {seconds: 0.01, memory: 2000")
    done = book.run("compare")
    assert done.returncode == 0, done.stderr
    assert "slower here than its budget (no failure): notebooks/tiny.ipynb: " in done.stdout
    book.edit("chapters/tiny.md", "memory: 2000", "memory: 5")
    done = book.run("compare")
    assert done.returncode == 2
    assert "MiB of memory, its budget in chapters/tiny.md is 5" in done.stderr
    assert json.loads(next((book.root / "_build" / "measured").glob("notebooks-*.json")).read_text())["memory"] > 5


@pytest.mark.slow
def test_a_budget_is_declared_for_one_thread_and_not_judged_at_two(book: Book):
    book.edit("chapters/tiny.md", "budget: {seconds: 60, memory: 2000", "budget: {seconds: 60, memory: 5")
    done = book.run("compare", "--threads", "2")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_too_many_exempt_cells_fail_the_book_but_not_a_single_notebook(book: Book):
    path = book.root / "notebooks" / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code[:2]:
        cell.metadata.update(tags=["nbval-ignore-output"], varies="a test")
    nbformat.write(notebook, path)
    done = book.run("compare")
    assert done.returncode == 2
    assert "Make outputs stable instead" in done.stderr
    assert book.run("compare", "tiny").returncode == 0
