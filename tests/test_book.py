"""Building the site of the small book: what it shows, what it refuses, what it leaves alone."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Book, made_once


@pytest.fixture(scope="session")
def built_book(tmp_path_factory: pytest.TempPathFactory, executed_book: Book) -> Book:
    """Return the small book with its site; tests must not change it."""

    def make(root: Path) -> None:
        done = executed_book.copy(root).run("book")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "The book is ready: open" in done.stdout and " s  build the pages" in done.stdout

    return Book(made_once(tmp_path_factory, "built-book", make))


@pytest.fixture
def built(built_book: Book, tmp_path: Path) -> Book:
    """Return a copy of the small book and its site that a test may change."""
    shutil.copytree(built_book.root, tmp_path / "built")
    return Book(tmp_path / "built")


def test_the_site_shows_the_recorded_outputs_and_executes_nothing(built: Book):
    page = built.read("_build/html/chapters/tiny.html")
    recorded = json.loads(built.read("notebooks/tiny.ipynb"))
    [clock] = [cell for cell in recorded["cells"] if "varies" in cell["metadata"]]
    assert clock["outputs"][0]["text"][0].strip() in page  # the time at which the notebook was executed
    assert "ZeroDivisionError" in page
    assert 'alt="A line from 0 to 1."' in page
    assert "No output recorded yet: this cell needs a GPU." in page
    assert "Outputs of this page: torch" in page
    assert '<details class="quiz-option quiz-right">' in page
    assert "katex" in page


def test_the_coverage_page_links_what_is_taught_and_shows_what_is_not(built: Book):
    page = built.read("_build/html/chapters/coverage.html")
    assert "1 of 2 items" in page
    assert 'href="tiny.html#what-a-number-is"' in page
    assert "Something that no lesson teaches" in page


def test_the_coverage_page_follows_what_a_lesson_declares(built: Book):
    built.edit("chapters/tiny.md", "what-a-number-is: [T-01]", "what-a-number-is: [T-01, T-02]")
    assert built.run("book").returncode == 0
    assert "2 of 2 items" in built.read("_build/html/chapters/coverage.html")


def test_one_changed_sentence_is_on_the_page_after_the_next_build(built: Book):
    built.edit("chapters/tiny.md", "Code with", "Words with")
    done = built.run("book")
    assert done.returncode == 0, done.stderr
    assert "notebooks/tiny.ipynb: text renewed, outputs kept" in done.stdout
    assert "Words with" in built.read("notebooks/tiny.ipynb")
    assert "Words with" in built.read("_build/html/chapters/tiny.html")


def test_links_that_lead_nowhere_fail_the_build_with_their_lines(book: Book):
    book.edit("chapters/tiny.md", "[home](welcome.md)", "[home](elsewhere.md)")
    book.edit("chapters/tiny.md", "{term}`leaf tensor`", "{term}`root tensor`")
    done = book.run("book")
    assert done.returncode == 2
    assert "elsewhere.md" in done.stderr and "root tensor" in done.stderr
    assert "chapters/tiny.md:" in done.stderr


def test_jupyter_book_on_its_own_is_told_to_use_the_command(book: Book):
    import os
    import subprocess
    import sys

    from conftest import REPOSITORY

    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(book.root)]
    environment = {**os.environ, "COURSE_ROOT": str(book.root)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "build the book with `make book`" in done.stdout + done.stderr


def test_a_learners_copy_is_made_once_and_never_overwritten(book: Book, monkeypatch: pytest.MonkeyPatch):
    from course import lab

    for name, folder in (("NOTEBOOKS", "notebooks"), ("EXERCISES", "exercises"), ("WORK", "my-work")):
        monkeypatch.setattr(lab, name, book.root / folder)
    assert [path.name for path in lab.prepare()] == ["tiny.ipynb", "tiny-exercises.ipynb"]
    copy = book.root / "my-work" / "tiny.ipynb"
    copy.write_text("changed by the learner", encoding="utf-8")
    assert lab.prepare() == []
    assert copy.read_text(encoding="utf-8") == "changed by the learner"
