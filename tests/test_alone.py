"""A notebook opened outside the repository, as Colab does: alone in an empty folder, with nothing but what Colab has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from conftest import REPOSITORY

from course.checks import ALLOWED
from course.environment import python_of
from course.kernels import surroundings
from course.paths import DATA
from course.sources import Source, lessons

LESSONS = sorted(lessons(), key=lambda lesson: -lesson.budget.seconds)  # the longest first: no worker idles at the end

# Run a notebook's cells one after another in one namespace. Colab's kernel would do the same; this needs no kernel, so
# that the environment can hold the four packages and nothing else.
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
def learner(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the interpreter of an environment with torch, torchvision, numpy and matplotlib alone, one for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "learner"
    python = python_of(folder)
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "complete").is_file():
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
            command = [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
            constraints = ["--constraint", str(REPOSITORY / "requirements.txt")]
            subprocess.run([*command, *constraints, "-r", str(REPOSITORY / "requirements.in")], check=True)
            (folder / "complete").touch()
    return python


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_notebook_runs_to_the_end_on_its_own(learner: Path, lesson: Source, tmp_path: Path):
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
        [str(learner), "-I", str(tmp_path / "run.py"), "notebook.ipynb"],
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
def test_the_learners_environment_holds_nothing_of_ours(learner: Path):
    listed = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "list", "--python", str(learner)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[0] for line in listed.stdout.splitlines()[2:]}
    assert names >= ALLOWED
    assert not names & {"jupyter-book", "nbval", "nbclient", "ipykernel", "ipython", "scikit-learn", "pandas"}


def test_every_lesson_has_a_notebook():
    found = [path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")]
    assert sorted(found) == sorted(lesson.name for lesson in LESSONS)
