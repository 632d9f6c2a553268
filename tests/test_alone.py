"""A notebook opened outside the repository, as Colab does: alone in an empty folder, with nothing but what Colab has.

`python -m course compare` opens nearly all lessons so. Here are those that it compares with something more at hand: they
have to run to their end without it, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY, Book

from course import learner
from course.checks import ALLOWED
from course.errors import CourseError
from course.kernels import surroundings
from course.paths import DATA
from course.sources import Source, lessons

LESSONS = [lesson for lesson in lessons() if lesson.optional]

# Run a notebook's cells one after another in one namespace, as a kernel does.
RUN = """
import json, linecache, sys, types
import matplotlib
matplotlib.use("Agg")
module = types.ModuleType("__main__")
sys.modules["__main__"] = module
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"], 1):
    tags = cell["metadata"].get("tags", [])
    if cell["cell_type"] != "code":
        continue  # cells that need a GPU are run as well: they do nothing without one
    source, name = "".join(cell["source"]), f"<cell {number}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # as a kernel does, for `inspect`
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    except Exception as error:
        if "raises-exception" not in tags:
            raise SystemExit(f"cell {number} of {sys.argv[1]}: {type(error).__name__}: {error}")
print("ran to the end")
"""


@pytest.fixture(scope="session")
def python() -> Path:
    """Return the interpreter of a learner."""
    return learner.ensure()


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_notebook_runs_to_the_end_on_its_own(python: Path, lesson: Source, tmp_path: Path):
    folder = tmp_path / "content"
    folder.mkdir()
    shutil.copy2(REPOSITORY / "notebooks" / f"{lesson.name}.ipynb", folder / "notebook.ipynb")
    if lesson.datasets:  # what `download=True` would put there; the mirrors cannot be reached from a test
        shutil.copytree(DATA, folder / "data")
    before = set(folder.rglob("*"))
    environment = {
        name: value for name, value in surroundings().items() if not name.startswith(("PYTHONPATH", "COURSE"))
    }
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    done = subprocess.run(
        [str(python), "-I", str(tmp_path / "run.py"), "notebook.ipynb"],
        cwd=folder,
        env={**environment, "MPLCONFIGDIR": str(tmp_path / "matplotlib"), "HOME": os.environ.get("HOME", "")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("ran to the end\n")
    assert set(folder.rglob("*")) == before, "the notebook leaves files beside itself"


@pytest.mark.slow
def test_the_learners_environment_holds_nothing_of_ours(python: Path):
    listed = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "list", "--python", str(python)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[0] for line in listed.stdout.splitlines()[2:]}
    assert names >= {*ALLOWED, "ipykernel"}
    others = {name for lesson in LESSONS for name in lesson.optional}
    assert not names & {"jupyter-book", "nbval", "nbclient", "jupytext", "scikit-learn", "pandas", "tqdm", *others}


def test_without_a_network_the_environment_of_a_learner_gets_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learner, "FOLDER", tmp_path / "learner")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    for _ in range(2):  # what is there half is not taken for whole
        with pytest.raises(CourseError, match="could not set up the environment of a learner .* Check the network"):
            learner.ensure()


def say_in_the_last_cell(book: Book, code: str, output: str) -> None:
    """Give the small book's notebook a last cell, with what it is said to have printed."""
    path = book.root / "notebooks" / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    printed = nbformat.v4.new_output("stream", name="stdout", text=output)
    notebook.cells.append(nbformat.v4.new_code_cell(code, outputs=[printed], execution_count=99))
    nbformat.write(notebook, path)


@pytest.mark.slow
def test_a_lesson_is_compared_alone_with_the_libraries_of_a_learner(book: Book):
    code = "import importlib.util, os\nprint(os.listdir(), *map(importlib.util.find_spec, ['course', 'nbval', 'onnx']))"
    say_in_the_last_cell(book, code, "['tiny.ipynb'] None None None\n")
    done = book.run("compare", "tiny")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_lesson_that_leaves_a_file_behind_fails(book: Book):
    say_in_the_last_cell(book, "print(open('model.pt', 'w').write('weights'))", "7\n")
    done = book.run("compare", "tiny")
    assert done.returncode == 2
    assert "tiny.ipynb leaves files beside itself: model.pt" in done.stdout


@pytest.mark.slow
def test_a_lesson_that_shows_more_than_a_learner_has_is_compared_in_its_place(book: Book):
    book.edit("chapters/tiny.md", "  data: []", "  data: []\n  optional: [nbval]")
    code = "import importlib.util, os\nprint(os.listdir(), importlib.util.find_spec('nbval') is not None)"
    say_in_the_last_cell(book, code, "['tiny.ipynb'] True\n")
    done = book.run("compare", "tiny")
    assert done.returncode == 0, done.stdout


def test_every_lesson_has_a_notebook():
    found = [path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")]
    assert sorted(found) == sorted(lesson.name for lesson in lessons())
