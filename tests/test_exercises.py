"""Exercise sets: what learners get, and that the checks are worth something."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import Book

SET = "chapters/tiny.exercises.md"


def test_the_learners_notebook_is_what_nbgrader_releases(executed_book: Book, tmp_path: Path):
    done = executed_book.run("nbgrader", "tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    subprocess.run(
        [sys.executable, "-m", "nbgrader", "generate_assignment", "tiny", "--no-db"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
    )
    released = nbformat.read(tmp_path / "release" / "tiny" / "tiny.ipynb", as_version=4)
    ours = nbformat.read(executed_book.root / "exercises" / "tiny.ipynb", as_version=4)
    assert [(cell.cell_type, cell.source, cell.metadata) for cell in released.cells] == [
        (cell.cell_type, cell.source, cell.metadata) for cell in ours.cells
    ]


def test_learners_get_no_solution_no_hidden_check_and_no_wrong_answer(executed_book: Book):
    text = executed_book.read("exercises/tiny.ipynb")
    for secret in ("2 * x  # secret way", "hidden: negative", "x + 2\\n", "Because the secret way", "BEGIN"):
        assert secret not in text
    assert "raise NotImplementedError()" in text
    assert "you added 2 instead" in text  # the visible check


def test_the_worked_notebook_holds_the_solution_its_explanation_and_its_output(executed_book: Book):
    text = executed_book.read("solutions/tiny.ipynb")
    assert "secret way" in text and "Because the secret way" in text and "double: all checks passed" in text
    assert "BEGIN SOLUTION" not in text


def test_the_trial_of_a_sound_set_passes(executed_book: Book):
    done = executed_book.run("check-exercises")
    assert done.returncode == 0, done.stderr
    assert "1 questions, 5 answers tried" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "return 2 * x  # secret way",
            "return 3 * x",
            "the worked solution of `double` fails its check: AssertionError",
        ),
        ("return 2 * x  # secret way", "import sys; print('noise', file=sys.stderr); return 2 * x", "writes to stderr"),
        ("expects: you added 2", "expects: you subtracted", "fails with another message than `you subtracted`"),
        ("    return x + 2\n", "    return x * 2\n", "a wrong answer of `double` passes its check"),
        ("    return x + 2\n", "    return x + 'a'\n", "fails with TypeError"),
        ("expects: should be 6\n", "other: 1\n", "does not say what message it `expects`"),
        (":::{dropdown} Hint 3", ":::{dropdown} Clue 3", "needs three folded hints"),
        (
            "tags: [wrong]\nexpects: should be 6",
            "tags: [solution]\nexpects: should be 6",
            "needs exactly one cell tagged `solution`",
        ),
    ],
)
def test_a_flaw_in_a_set_is_found(book: Book, old: str, new: str, complaint: str):
    book.edit(SET, old, new)
    done = book.run("check-exercises")
    assert done.returncode == 2
    assert complaint in done.stdout + done.stderr
    assert SET in done.stdout + done.stderr


def test_a_leaked_solution_or_output_in_the_learners_notebook_is_found(book: Book):
    path = book.root / "exercises" / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    answer = next(cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution"))
    answer.source = "def double(x):\n    return 2 * x  # secret way"
    answer.outputs = [nbformat.v4.new_output("stream", text="leak")]
    nbformat.write(notebook, path)
    done = book.run("check", "--json")
    problems = json.loads(done.stdout[done.stdout.index("{") :])
    assert any("secret way" in problem for problem in problems["sealed_exercises"])
    assert any("holds outputs" in problem for problem in problems["sealed_exercises"])
    assert any("differs from what its source makes" in problem for problem in problems["derived_files"])
