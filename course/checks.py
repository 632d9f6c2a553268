"""Prove what the book promises about its own files; `python -m course check` runs all of it."""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course import curriculum, datasets, exercise_checks
from course.compare import MOST_EXEMPT, PICTURES, exempt, picture_problem
from course.errors import CourseError
from course.exercises import questions
from course.gpu_outputs import is_gpu
from course.notebook_files import to_text
from course.notebooks import stale, targets
from course.paths import EXERCISES, NOTEBOOKS, SOLUTIONS, relative
from course.portable import raw_myst
from course.sources import Source, exercise_sets, lessons, pages

ALLOWED = {
    "torch",
    "torchvision",
    "numpy",
    "matplotlib",
}  # what Colab has: a lesson may import these and the standard library
WARNINGS = re.compile(r"\b(DeprecationWarning|FutureWarning|PendingDeprecationWarning)\b")


def derived_files() -> Iterator[str]:
    """Derived files are those that the present sources make, and there are no others."""
    for problem in stale():
        yield f"{problem}: run `make execute`"


def portable_notebooks() -> Iterator[str]:
    """No Markdown cell of a notebook holds raw MyST syntax, and a lesson imports only what Colab has."""
    for path in _notebooks():
        for index, cell in enumerate(_read(path).cells):
            if cell.cell_type == "markdown" and (problem := raw_myst(cell.source)):
                yield f"{relative(path)}, cell {index + 1}: {problem}"
            if cell.cell_type == "code":
                for name in sorted(_imports(cell.source) - ALLOWED - set(sys.stdlib_module_names)):
                    yield f"{relative(path)}, cell {index + 1}: imports {name}, which a learner in Colab may not have"


def executed_notebooks() -> Iterator[str]:
    """Every code cell was run, in order; nothing warned of a deprecation; every picture shows something and is described."""
    for target in targets([]):
        if not target.path.is_file():
            continue  # told by derived_files
        last = 0
        for index, cell in enumerate(_read(target.path).cells):
            where = f"{target}, cell {index + 1}"
            if cell.cell_type != "code" or is_gpu(cell):
                continue
            if cell.execution_count != last + 1:
                yield f"{where}: not executed in order"
            last = cell.execution_count or last
            for output in cell.outputs:
                if output.get("name") == "stderr" and WARNINGS.search(output.text):
                    yield f"{where}: warns of a deprecation: {output.text.strip().splitlines()[0]}"
                for kind in PICTURES:
                    if kind not in output.get("data", {}):
                        continue
                    if problem := picture_problem(output["data"][kind]):
                        yield f"{where}: the picture {problem}"
                    if not target.is_solution and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
                        yield f"{where}: the picture has no alternative text (`mystnb: image: alt:`)"


def exempt_cells() -> Iterator[str]:
    """Cells whose output is not compared are few, and each says why."""
    reasons, count = exempt([target.path for target in targets([]) if target.path.is_file()])
    for reason in reasons:
        if reason.endswith("NO REASON GIVEN"):
            yield f"{reason}: write `varies: why` instead of the tag"
    if len(reasons) > max(1, MOST_EXEMPT * count):
        yield f"{len(reasons)} of {count} code cells are exempt from comparison, more than {MOST_EXEMPT:.0%}"


def sealed_exercises() -> Iterator[str]:
    """What learners get holds no solution, no hidden check, no wrong answer and no output."""
    for exercise_set in exercise_sets():
        path = EXERCISES / f"{exercise_set.name}.ipynb"
        if not path.is_file():
            continue  # told by derived_files
        notebook = _read(path)
        everything = to_text(notebook)
        for mark in ("BEGIN SOLUTION", "END SOLUTION", "BEGIN HIDDEN TESTS", "END HIDDEN TESTS"):
            if mark in everything:
                yield f"{relative(path)} holds the mark `{mark}`"
        if any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells):
            yield f"{relative(path)} holds outputs"
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        for line in _secret_lines(exercise_set):
            if line in text:
                yield f"{relative(path)} holds a line of a solution or hidden check: {line.strip()}"


def answers() -> Iterator[str]:
    """Every solution passes, every untouched stub fails, every recorded wrong answer fails with its message."""
    for _, found, _ in exercise_checks.problems_of(exercise_sets()):
        yield from found


def budgets() -> Iterator[str]:
    """Every notebook was recorded within the processor time, memory and download that its source declares."""
    for target in targets([]):
        budget, source = target.source.budget, target.source
        download = sum(datasets.named(name).download_mib for name in source.datasets)
        if download > budget.download:
            yield f"{source.where}: its data sets are {download:.1f} MiB to download, the budget is {budget.download:g}"
        if not target.path.is_file():
            continue  # told by derived_files
        used = _read(target.path).metadata.get("course", {}).get("used", {})
        for what in ("seconds", "memory"):
            if used.get(what, 0) > getattr(budget, what):
                yield f"{target} used {used[what]:g} {what}, the budget in {source.where} is {getattr(budget, what):g}"


def curriculum_places() -> Iterator[str]:
    """Declared curriculum items and sections exist; every page says what it needs, and that page exists."""
    try:
        curriculum.places()
    except CourseError as error:
        yield str(error)
    names = {page.name for page in pages()}
    for page in pages():
        for name in page.header.get("prerequisites", []):
            if name not in names:
                yield f"{page.where}: its prerequisite `{name}` is no page of the book"


def exercise_sets_complete() -> Iterator[str]:
    """Every lesson's exercise set has at least five questions, each with hints, checks and wrong answers."""
    names = {each.name for each in exercise_sets()}
    for exercise_set in exercise_sets():
        if (count := len(questions(exercise_set))) < 5:
            yield f"{exercise_set.where}: {count} questions, at least 5 are needed"
    for lesson in lessons():
        if f"exercises/{lesson.name}.ipynb" in lesson.text and lesson.name not in names:
            yield f"{lesson.where} links to an exercise set that does not exist"


def glossary_words() -> Iterator[str]:
    """Every word of the glossary is linked from a page (that a linked word is in the glossary, Sphinx checks)."""
    texts = {page.name: page.text for page in pages()}
    linked = {
        (target or shown).strip().lower()
        for text in texts.values()
        for shown, target in re.findall(r"\{term\}`([^`<]+)(?:<([^`>]+)>)?`", text)
    }
    entries = re.findall(r"^:{3,}\{glossary\}\n(.*?)^:{3,}", texts.get("glossary", ""), re.MULTILINE | re.DOTALL)
    for word in re.findall(r"^([^\s:].*)$", "\n".join(entries), re.MULTILINE):
        if word.strip().lower() not in linked:
            yield f"chapters/glossary.md: no page links to `{word}`; link it at its first use or take it out"


CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    derived_files,
    portable_notebooks,
    executed_notebooks,
    exempt_cells,
    sealed_exercises,
    exercise_sets_complete,
    answers,
    budgets,
    curriculum_places,
    glossary_words,
)


def _notebooks() -> list[Path]:
    return sorted(path for folder in (NOTEBOOKS, EXERCISES, SOLUTIONS) for path in folder.glob("*.ipynb"))


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def _imports(source: str) -> set[str]:
    """Return the top-level names of the modules that a cell needs (an import inside `try` may fail)."""
    names: set[str] = set()
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE))
    except SyntaxError:
        return names  # a cell that shows a syntax error
    optional = {id(inner) for outer in ast.walk(tree) if isinstance(outer, ast.Try) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def _secret_lines(exercise_set: Source) -> Iterator[str]:
    """Yield the lines of solutions and hidden checks that stand nowhere in the visible part of their set."""
    visible = "\n".join(
        cell.source for cell in exercise_set.cells if "solution" not in cell.tags and "wrong" not in cell.tags
    )
    for question in questions(exercise_set):
        for source, begin, end in (
            (question.solution.source, "### BEGIN SOLUTION", "### END SOLUTION"),
            (question.check.source, "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"),
        ):
            for region in re.findall(f"{begin}\n(.*?){end}", source, re.DOTALL):
                for line in region.splitlines():
                    if len(line.strip()) > 15 and (begin.endswith("TESTS") or line not in visible):
                        yield line


def command(options: list[str]) -> int:
    """Run every check and list the problems."""
    parser = argparse.ArgumentParser(
        prog="python -m course check",
        description="Prove that derived files are up to date and exercises, budgets and curriculum hold.",
    )
    parser.add_argument("--json", action="store_true", help="print the problems as JSON")
    chosen = parser.parse_args(options)
    found: dict[str, list[str]] = {}
    for check in CHECKS:
        found[check.__name__] = list(check())
        if not chosen.json:
            print(f"{'ok  ' if not found[check.__name__] else 'FAIL'}  {check.__doc__}", flush=True)
            for problem in found[check.__name__]:
                print(f"        {problem}", flush=True)
    if chosen.json:
        print(json.dumps(found, indent=2))
    count = sum(map(len, found.values()))
    if count:
        raise CourseError(f"{count} problems; each line above says where and what to do")
    return 0
