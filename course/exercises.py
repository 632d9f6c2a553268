"""From one exercise set come the learner's notebook, the worked notebook and the instructor's assignment.

A set is a text notebook: prompts, `solution` cells (with nbgrader's `### BEGIN SOLUTION` marks), `check` cells and
`wrong` cells (typical wrong answers, which stay in the source). nbgrader's own preprocessors make the released version.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course.errors import CourseError
from course.notebook_files import new_notebook
from course.portable import portable
from course.sources import Cell, Source, exercise_sets, repository, select, site_address

DIFFICULTY = {1: "●○○", 2: "●●○", 3: "●●●"}


@dataclass(frozen=True)
class Question:
    """One auto-checked question of a set."""

    name: str
    points: int
    difficulty: int
    minutes: int
    solution: Cell
    check: Cell
    wrong: tuple[Cell, ...]


def questions(exercise_set: Source) -> list[Question]:
    """Return the questions of a set in order.

    Raises:
        CourseError: a question that lacks its solution, its check, its metadata, three hints or three wrong answers.
    """
    found: list[Question] = []
    current: dict = {}
    cells: dict[str, list[Cell]] = {}
    hints = 0

    def finish() -> None:
        if not current:
            return
        place = f"{exercise_set.where}, question `{current['question']}`"
        for kind in ("solution", "check"):
            if len(cells.get(kind, [])) != 1:
                raise CourseError(f"{place}: needs exactly one cell tagged `{kind}`, has {len(cells.get(kind, []))}")
        if len(cells.get("wrong", [])) < 3:
            raise CourseError(f"{place}: needs three cells tagged `wrong` or more, has {len(cells.get('wrong', []))}")
        if hints != 3:
            raise CourseError(f"{place}: needs three folded hints (`:::{{dropdown}} Hint 1: …`), has {hints}")
        try:
            numbers = {key: int(current[key]) for key in ("points", "difficulty", "minutes")}
        except KeyError as error:
            raise CourseError(f"{place}: the cell break does not give {error}") from None
        found.append(
            Question(
                current["question"],
                **numbers,
                solution=cells["solution"][0],
                check=cells["check"][0],
                wrong=tuple(cells["wrong"]),
            )
        )

    for cell in exercise_set.cells:
        if "question" in cell.metadata:
            finish()
            current, cells, hints = cell.metadata, {}, 0
        if cell.kind == "markdown":
            hints += cell.source.count(":::{dropdown} Hint ")
        for tag in cell.tags:
            cells.setdefault(tag, []).append(cell)
    finish()
    names = [question.name for question in found]
    if len(set(names)) != len(names):
        raise CourseError(f"{exercise_set.where}: two questions share a name")
    return found


def source_notebook(exercise_set: Source) -> NotebookNode:
    """Return the instructor's version: prompts, solutions and checks with nbgrader's metadata."""
    site = site_address()
    by_line = {question.solution.line: question for question in questions(exercise_set)}
    checks = {question.check.line: question for question in questions(exercise_set)}
    cells: list[NotebookNode] = [_header(exercise_set, len(by_line))]
    for cell in exercise_set.cells:
        if "wrong" in cell.tags:
            continue
        if cell.kind == "markdown":
            text = portable(cell.source, site, f"{exercise_set.where}:{cell.line}")
            if "question" in cell.metadata:
                text = _with_facts(text, cell.metadata)
            new = nbformat.v4.new_markdown_cell(text)
            if cell.metadata.get("solution"):
                new.metadata["tags"] = ["explanation"]
            cells.append(new)
            continue
        kept = {name: value for name, value in cell.metadata.items() if name == "tolerance"}
        new = nbformat.v4.new_code_cell(cell.source, metadata=kept)
        if question := by_line.get(cell.line):
            new.metadata["nbgrader"] = _nbgrader(f"{question.name}-answer", solution=True)
        elif question := checks.get(cell.line):
            new.metadata["nbgrader"] = _nbgrader(
                f"{question.name}-check", grade=True, locked=True, points=question.points
            )
        cells.append(new)
    return _finish(cells)


def released(exercise_set: Source) -> NotebookNode:
    """Return the learner's version, made by nbgrader's preprocessors from the instructor's."""
    from nbgrader import preprocessors as steps

    notebook = source_notebook(exercise_set)
    notebook.cells = [cell for cell in notebook.cells if "explanation" not in cell.metadata.get("tags", [])]
    # The order of nbgrader's `generate_assignment`, without the steps that only touch its data base.
    for step in (
        steps.LockCells,
        steps.ClearSolutions,
        steps.ClearOutput,
        steps.CheckCellMetadata,
        steps.ComputeChecksums,
        steps.ClearHiddenTests,
        steps.ClearMarkScheme,
        steps.ComputeChecksums,
        steps.CheckCellMetadata,
    ):
        notebook, _ = step().preprocess(notebook, {})
    return _finish(notebook.cells)


def worked(exercise_set: Source) -> NotebookNode:
    """Return the solutions as a notebook that still has to be executed."""
    notebook = source_notebook(exercise_set)
    for cell in notebook.cells:
        cell.metadata.pop("nbgrader", None)
        if cell.cell_type == "code":
            marks = ("### BEGIN SOLUTION", "### END SOLUTION")
            cell.source = "\n".join(line for line in cell.source.splitlines() if line.strip() not in marks)
    notebook.cells[0].source = notebook.cells[0].source.replace("# Exercises:", "# Solutions:")
    site, name = site_address(), exercise_set.name
    notebook.cells[
        1
    ].source = f"*Try [the exercises]({site}/exercises/{name}.html) first · [the lesson]({site}/chapters/{name}.html)*"
    return _finish(notebook.cells)


def _header(exercise_set: Source, count: int) -> NotebookNode:
    address, branch = repository()
    name = exercise_set.name
    colab = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    total = sum(question.minutes for question in questions(exercise_set))
    return nbformat.v4.new_markdown_cell(
        f"*{count} questions, about {total} minutes · [the lesson]({site_address()}/chapters/{name}.html) · "
        f"[open in Colab]({colab}/blob/{branch}/exercises/{name}.ipynb) · [worked solutions]({site_address()}/solutions/{name}.html): try first*"
    )


def _with_facts(text: str, facts: dict) -> str:
    heading, _, rest = text.partition("\n")
    points = f"{facts['points']} point{'s' if facts['points'] != 1 else ''}"
    line = f"*Difficulty {DIFFICULTY[facts['difficulty']]} · {facts['minutes']} minutes · {points}*"
    return f"{heading}\n\n{line}\n{rest}"


def _nbgrader(
    grade_id: str, *, grade: bool = False, solution: bool = False, locked: bool = False, points: int | None = None
) -> dict:
    metadata = {
        "grade": grade,
        "grade_id": grade_id,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    if points is not None:
        metadata["points"] = points
    if grade or solution:
        metadata["cell_type"] = "code"
    return metadata


def _finish(cells: list[NotebookNode]) -> NotebookNode:
    """Put the title first and make a notebook of the cells."""
    title = next(
        (index for index, cell in enumerate(cells) if cell.cell_type == "markdown" and cell.source.startswith("# ")), 0
    )
    if title:
        cells[0], cells[title] = cells[title], cells[0]
    return new_notebook(cells)


NBGRADER_CONFIG = """\
# Written by `python -m course nbgrader {name}`. Run nbgrader in this folder.
c = get_config()
c.CourseDirectory.course_id = "pytorch-playground"
c.ClearSolutions.code_stub = {{"python": "# YOUR CODE HERE\\nraise NotImplementedError()"}}
c.ExecutePreprocessor.timeout = 60
"""


def command(options: list[str]) -> int:
    """Write a set as an nbgrader assignment."""
    parser = argparse.ArgumentParser(
        prog="python -m course nbgrader",
        description="Write an exercise set as an nbgrader assignment for an instructor.",
    )
    parser.add_argument("name", help="the set, for example tensors")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="nbgrader's course folder; made if it is missing"
    )
    chosen = parser.parse_args(options)
    [exercise_set] = select(exercise_sets(), [chosen.name])
    target = chosen.out / "source" / chosen.name / f"{chosen.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = source_notebook(exercise_set)
    notebook.cells = [cell for cell in notebook.cells if "explanation" not in cell.metadata.get("tags", [])]
    nbformat.write(notebook, target)
    config = chosen.out / "nbgrader_config.py"
    if not config.exists():
        config.write_text(NBGRADER_CONFIG.format(name=chosen.name), encoding="utf-8")
    print(f"wrote {target} and {config}; next, in {chosen.out}: nbgrader generate_assignment {chosen.name}")
    return 0
