"""Make the notebook of a lesson from its text, and decide whether recorded outputs still belong to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course import datasets, gpu_outputs
from course.environment import say
from course.exercises import released, worked
from course.notebook_files import new_notebook, to_text, write
from course.paths import EXERCISES, LOCK, NOTEBOOKS, ROOT, SOLUTIONS, relative
from course.portable import portable
from course.sources import Source, exercise_sets, lessons, repository, select, site_address

# Code, requirements, data, device and the programs it starts decide what a notebook prints. Anything else may change without re-executing it.
KEPT_TAGS = ("hide-input", "raises-exception", "gpu")


class Target:
    """A notebook that is executed: that of a lesson, or the worked version of an exercise set."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.is_solution = source.path.name.endswith(".exercises.md")
        self.is_alone = not self.is_solution and not source.optional  # see course/learner.py
        self.path: Path = (SOLUTIONS if self.is_solution else NOTEBOOKS) / f"{source.name}.ipynb"

    def __str__(self) -> str:
        return relative(self.path)

    def fresh(self) -> NotebookNode:
        """Return the notebook without outputs, as its source makes it now."""
        return worked(self.source) if self.is_solution else lesson_notebook(self.source)

    def recorded(self) -> NotebookNode | None:
        """Return the notebook on disk, or None if there is none that can be read."""
        try:
            return nbformat.read(self.path, as_version=4)
        except (OSError, ValueError):
            return None

    def up_to_date(self) -> NotebookNode | None:
        """Return the notebook of today's text with the recorded outputs, or None if these no longer belong to it."""
        fresh, recorded = self.fresh(), self.recorded()
        if recorded is None or recorded.metadata.get("course", {}).get("key") != key(self.source, fresh):
            return None
        fresh.metadata["course"] = recorded.metadata["course"]
        old = [cell for cell in recorded.cells if cell.cell_type == "code"]
        new = [cell for cell in fresh.cells if cell.cell_type == "code"]
        if [cell.source for cell in old] != [cell.source for cell in new]:
            return None
        for before, after in zip(old, new, strict=True):
            if not gpu_outputs.is_gpu(after):
                after.outputs, after.execution_count = before.outputs, before.execution_count
        gpu_outputs.carry_over(self.source, recorded, fresh)
        return fresh


def key(source: Source, notebook: NotebookNode) -> str:
    """Return the fingerprint of everything that decides a notebook's outputs."""
    facts = {
        "code": [
            [cell.source, [tag for tag in cell.metadata.get("tags", []) if tag in KEPT_TAGS]]
            for cell in notebook.cells
            if cell.cell_type == "code"
        ],
        "requirements": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "data": {name: datasets.fingerprint(name) for name in source.datasets},
        "device": "cpu",  # what a GPU printed has fingerprints of its own, see gpu_outputs
    }
    if programs := _programs(source):
        facts["programs"] = programs
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _programs(source: Source) -> dict[str, str]:
    """Return path -> fingerprint of each program in the folders of the repository that a notebook starts them from."""
    folders = [ROOT / name for name in source.optional]
    paths = sorted(path for folder in folders for path in folder.glob("*.py"))
    return {relative(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def lesson_notebook(source: Source) -> NotebookNode:
    """Return the notebook of a lesson, not executed, without any MyST syntax."""
    site = site_address()
    cells = []
    for cell in source.cells:
        where = f"{source.where}:{cell.line}"
        if cell.kind == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(portable(cell.source, site, where)))
        else:
            cells.append(nbformat.v4.new_code_cell(cell.source, metadata=_code_metadata(cell.metadata)))
    address, branch = repository()
    colab = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    links = f"*[Read as a web page]({site}/chapters/{source.name}.html) · [open in Colab]({colab}/blob/{branch}/notebooks/{source.name}.ipynb)*"
    heading, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{heading}\n\n{links}\n{rest}".rstrip()
    return new_notebook(cells)


def _code_metadata(written: dict) -> dict:
    """Turn the short metadata of the text source into what Jupyter, Colab and nbval understand."""
    metadata = {name: value for name, value in written.items() if name in ("mystnb", "tolerance", "varies")}
    tags = list(written.get("tags", []))
    if "varies" in written:
        tags.append("nbval-ignore-output")
    if "hide-input" in tags:  # folded drawing code
        metadata["jupyter"] = {"source_hidden": True}
        metadata["cellView"] = "form"
    if tags:
        metadata["tags"] = tags
    return metadata


def targets(names: list[str]) -> list[Target]:
    """Return the notebooks that are executed, of the named lessons or of all: lessons, then solutions."""
    sources = [*lessons(), *exercise_sets()]
    select(sources, names)
    return [Target(source) for source in sources if not names or source.name in names]


def renew(chosen: list[Target], force: bool = False) -> list[Target]:
    """Rewrite the derived files of `chosen` as far as that needs no execution; return those that need it.

    A notebook whose outputs still belong to its code gets the present text (`force`: none does). Learners' notebooks
    are never executed, so they are always written.
    """
    waiting = []
    for target in chosen:
        kept = None if force else target.up_to_date()
        if kept is None:
            waiting.append(target)
        elif write(kept, target.path):
            say(f"{target}: text renewed, outputs kept")
        if target.is_solution:
            learners = EXERCISES / f"{target.source.name}.ipynb"
            if write(released(target.source), learners):
                say(f"{relative(learners)}: written")
    return waiting


def stale() -> Iterator[str]:
    """Yield what is wrong with each derived file that is not what the present sources make; nothing if all are."""
    expected = {target.path: target.up_to_date() for target in targets([])}
    expected |= {EXERCISES / f"{each.name}.ipynb": released(each) for each in exercise_sets()}
    for path, notebook in expected.items():
        if notebook is None:
            yield f"{relative(path)} is missing, or its outputs do not belong to the present code, lock or data"
        elif not path.is_file() or path.read_text(encoding="utf-8") != to_text(notebook):
            yield f"{relative(path)} differs from what its source makes"
    for folder in (NOTEBOOKS, EXERCISES, SOLUTIONS):
        for path in sorted(folder.glob("*.ipynb")):
            if path not in expected:
                yield f"{relative(path)} has no source in chapters/ (delete it)"
