"""`course check` finds what is wrong with a book, each problem with its place."""

import json

import nbformat
import pytest
from conftest import Book


def problems(book: Book) -> dict[str, list[str]]:
    done = book.run("check", "--json")
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.fixture(scope="session")
def found(executed_book: Book, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the problems of a book in which many things are wrong at once."""
    import shutil

    root = tmp_path_factory.mktemp("broken") / "book"
    shutil.copytree(executed_book.root, root, ignore=shutil.ignore_patterns("_build"))
    book = Book(root)
    book.edit("chapters/tiny.md", "prerequisites: []", "prerequisites: [calculus]")
    book.edit("chapters/tiny.md", "data: []", "data: [mnist]")
    book.edit("chapters/tiny.exercises.md", "seconds: 60, memory: 2000", "seconds: 0.01, memory: 1")
    book.edit("chapters/glossary.md", "operation made.", "operation made.\n\nlonely word\n: Nobody needs it.")
    path = root / "notebooks" / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\n:::{note}\nraw\n:::"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = "import pandas\n" + code[0].source
    code[0].execution_count = None
    code[1].metadata.pop("varies")
    code[2].metadata.pop("mystnb")
    code[3].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="x.py:1: FutureWarning: old"))
    nbformat.write(notebook, path)
    nbformat.write(notebook, root / "notebooks" / "orphan.ipynb")
    return problems(book)


def test_a_sound_book_has_no_problem_but_its_size(executed_book: Book):
    found = {check: lines for check, lines in problems(executed_book).items() if lines}
    assert found == {"exercise_sets_complete": ["chapters/tiny.exercises.md: 1 questions, at least 5 are needed"]}


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ("derived_files", "notebooks/tiny.ipynb is missing, or its outputs do not belong"),
        ("derived_files", "notebooks/orphan.ipynb has no source in chapters/"),
        ("portable_notebooks", "notebooks/tiny.ipynb, cell 1: a colon fence in line"),
        ("portable_notebooks", "imports pandas, which a learner in Colab may not have"),
        ("executed_notebooks", "not executed in order"),
        ("executed_notebooks", "warns of a deprecation: x.py:1: FutureWarning: old"),
        ("executed_notebooks", "the picture has no alternative text"),
        ("exempt_cells", "write `varies: why` instead of the tag"),
        ("budgets", "its data sets are 11.1 MiB to download, the budget is 0"),
        ("budgets", "seconds, the budget in chapters/tiny.exercises.md is 0.01"),
        ("budgets", "memory, the budget in chapters/tiny.exercises.md is 1"),
        ("glossary_words", "no page links to `lonely word`"),
        ("curriculum_places", "its prerequisite `calculus` is no page of the book"),
    ],
)
def test_a_problem_is_found_and_placed(found: dict[str, list[str]], check: str, problem: str):
    assert any(problem in line for line in found[check]), found[check]
