"""What gets executed again, and what happens when a cell fails."""

import json
import re

from conftest import Book


def test_what_is_up_to_date_is_not_executed_again(book: Book):
    before = book.read("notebooks/tiny.ipynb")
    done = book.run("execute")
    assert "nothing to execute" in done.stdout
    assert book.read("notebooks/tiny.ipynb") == before


def test_a_changed_sentence_renews_the_text_and_keeps_the_outputs(book: Book):
    book.edit("chapters/tiny.md", "stays.", "stays as it is.")
    done = book.run("execute")
    assert "text renewed, outputs kept" in done.stdout and "nothing to execute" in done.stdout
    assert "stays as it is." in book.read("notebooks/tiny.ipynb")
    assert '"3.75"' in book.read("notebooks/tiny.ipynb")


def test_changed_code_is_executed_and_nothing_else(book: Book):
    book.edit("chapters/tiny.md", "[1.25, 2.5]", "[1.25, 2.75]")
    done = book.run("execute")
    assert done.returncode == 0, done.stderr
    assert "notebooks/tiny.ipynb: executed" in done.stdout and "solutions/tiny.ipynb" not in done.stdout
    assert "4.0" in book.read("notebooks/tiny.ipynb")


def test_another_lock_makes_every_output_stale(book: Book):
    book.edit("requirements.txt", "torch==", "torch==0.")
    assert "executing 2 notebooks" in book.run("execute").stdout


def test_another_program_makes_the_outputs_of_a_lesson_that_starts_it_stale(book: Book):
    book.edit("chapters/tiny.md", "  data: []", "  data: []\n  optional: [scripts]")
    assert "nothing to execute" in book.run("execute", "tiny").stdout
    (book.root / "scripts").mkdir()
    (book.root / "scripts" / "program.py").write_text("print('new')\n", encoding="utf-8")
    assert "executing 1 notebooks" in book.run("execute", "tiny").stdout


def test_the_site_refuses_stale_outputs(book: Book):
    book.edit("chapters/tiny.md", "[1.25, 2.5]", "[1.25, 2.75]")
    done = book.run("book")
    assert done.returncode == 2
    assert "notebooks/tiny.ipynb" in done.stderr and "make execute" in done.stderr


def test_a_failing_cell_is_named_by_lesson_line_and_error_and_nothing_is_written(book: Book):
    before = book.read("notebooks/tiny.ipynb")
    book.edit("chapters/tiny.md", "sum(numbers)", "sum(absent)")
    done = book.run("execute")
    assert done.returncode == 2
    place = re.search(r"chapters/tiny\.md:(\d+) \(code cell 1, `numbers = ", done.stderr)
    assert place, done.stderr
    assert book.read("chapters/tiny.md").splitlines()[int(place.group(1)) - 1].startswith(("```{code-cell}", "numbers"))
    assert "NameError: name 'absent' is not defined" in done.stderr
    assert "Traceback" not in done.stderr
    assert book.read("notebooks/tiny.ipynb") == before
    assert not list(book.root.glob("notebooks/*.part"))


def test_a_notebook_says_what_produced_its_outputs(executed_book: Book):
    course = json.loads(executed_book.read("notebooks/tiny.ipynb"))["metadata"]["course"]
    assert set(course["outputs"]) == {"torch", "device", "date", "seconds"}
    assert course["outputs"]["device"].startswith("CPU (")


def test_tracebacks_hold_no_folder_of_this_machine(executed_book: Book):
    import sys
    from pathlib import Path

    text = executed_book.read("notebooks/tiny.ipynb")
    assert "ZeroDivisionError" in text
    assert sys.prefix not in text and str(Path.home()) not in text


def test_an_unknown_lesson_gets_one_clear_line(executed_book: Book):
    done = executed_book.run("execute", "tensers")
    assert done.returncode == 2
    assert done.stderr.strip() == "course: there is no `tensers`; known names: tiny"


def test_a_page_outside_the_table_of_contents_is_found(book: Book):
    (book.root / "chapters" / "lost.md").write_text(book.read("chapters/glossary.md"), encoding="utf-8")
    done = book.run("execute")
    assert done.returncode == 2
    assert "chapters/lost.md: not in _toc.yml" in done.stderr
