"""Read what people write: the text notebooks, exercise sets and prose pages in `chapters/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from jupytext.myst import myst_to_notebook

from course.errors import CourseError
from course.paths import CHAPTERS, ROOT, relative


@dataclass(frozen=True)
class Budget:
    """What a notebook may use: CPU seconds at one thread, MiB of resident memory, MiB to download."""

    seconds: float
    memory: float
    download: float


@dataclass(frozen=True)
class Cell:
    """One cell of a source, with the line of the file where it starts (1-based)."""

    kind: str
    source: str
    metadata: dict
    line: int

    @property
    def tags(self) -> list[str]:
        """The cell's tags."""
        return list(self.metadata.get("tags", []))


@dataclass(frozen=True)
class Source:
    """One file of `chapters/`: a lesson, a prose page (no code cells) or an exercise set."""

    path: Path
    header: dict
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The name that commands and links use: `tensors` for both `tensors.md` and `tensors.exercises.md`."""
        return self.path.name.split(".")[0]

    @property
    def where(self) -> str:
        """The path in the repository."""
        return relative(self.path)

    @cached_property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """The first level-one heading, without its mark."""
        for cell in self.cells:
            for line in cell.source.splitlines():
                if cell.kind == "markdown" and line.startswith("# "):
                    return line[2:].strip()
        raise CourseError(f"{self.where}: no `# Title` line; every page needs one")

    @property
    def code(self) -> list[Cell]:
        """The code cells in order."""
        return [cell for cell in self.cells if cell.kind == "code"]

    @property
    def budget(self) -> Budget:
        """The declared budget."""
        try:
            return Budget(**self.header["budget"])
        except (KeyError, TypeError):
            raise CourseError(
                f"{self.where}: the front matter needs `budget: {{seconds: …, memory: …, download: …}}`"
            ) from None

    @property
    def datasets(self) -> list[str]:
        """The names of the data sets that the notebook reads."""
        return list(self.header.get("data", []))

    @property
    def optional(self) -> list[str]:
        """What the notebook shows where it is there, and does without where it is not: libraries, folders."""
        return list(self.header.get("optional", []))

    @property
    def covers(self) -> dict[str, list[str]]:
        """Section slug (a question in an exercise set) -> curriculum IDs."""
        return {place: list(ids or []) for place, ids in (self.header.get("covers") or {}).items()}


def read(path: Path) -> Source:
    """Read one source file.

    Raises:
        CourseError: the front matter is missing or malformed.
    """
    return _parsed(path, path.read_text(encoding="utf-8"))


@cache  # a command asks for the same pages many times, and parsing one takes tens of milliseconds
def _parsed(path: Path, text: str) -> Source:
    try:
        notebook = myst_to_notebook(text, add_source_map=True)
    except Exception as error:  # jupytext raises bare ValueErrors and its own kinds for bad cell options
        raise CourseError(f"{relative(path)}: {error}") from None
    front = notebook.metadata
    key = "exercises" if path.name.endswith(".exercises.md") else "lesson"
    if key not in front:
        raise CourseError(f"{relative(path)}: the front matter has no `{key}:` block; CONTRIBUTING.md shows one")
    cells = tuple(
        Cell(cell.cell_type, cell.source, dict(cell.metadata), line + 1)
        for cell, line in zip(notebook.cells, front["source_map"], strict=True)
    )
    return Source(path, _plain(front[key]), cells)


def _plain(value: Any) -> Any:
    """Return front matter without nbformat's own kind of dictionary."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def toc() -> list[str]:
    """Return the pages of the book in order, as `_toc.yml` names them (`chapters/tensors`, …)."""
    table = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [table["root"]]
    for part in table.get("parts", []):
        for chapter in part["chapters"]:
            pages.append(chapter["file"])
            pages.extend(section["file"] for section in chapter.get("sections", []))
    return pages


def pages() -> list[Source]:
    """Return every lesson and prose page, in the order of the book."""
    listed = [
        CHAPTERS / f"{page.split('/')[1].removesuffix('.md')}.md" for page in toc() if page.startswith("chapters/")
    ]
    written = {path for path in CHAPTERS.glob("*.md") if not path.name.endswith(".exercises.md")}
    missing = [relative(path) for path in listed if path not in written]
    if missing:
        raise CourseError(f"_toc.yml names {', '.join(missing)}, which does not exist")
    forgotten = sorted(relative(path) for path in written - set(listed))
    if forgotten:
        raise CourseError(f"{', '.join(forgotten)}: not in _toc.yml; add the page there")
    return [read(path) for path in listed]


def lessons() -> list[Source]:
    """Return the pages that hold code, in the order of the book: each has a notebook."""
    return [page for page in pages() if page.code]


def exercise_sets() -> list[Source]:
    """Return every exercise set, in the order of the book."""
    order = {page.name: index for index, page in enumerate(pages())}
    sets = [read(path) for path in sorted(CHAPTERS.glob("*.exercises.md"))]
    unknown = [each.where for each in sets if each.name not in order]
    if unknown:
        raise CourseError(f"{', '.join(unknown)}: no lesson of that name stands beside it")
    return sorted(sets, key=lambda each: order[each.name])


def select(sources: list[Source], names: list[str]) -> list[Source]:
    """Return the sources called `names`, or all of them if there are no names."""
    if not names:
        return sources
    known = {source.name for source in sources}
    for name in names:
        if name not in known:
            raise CourseError(f"there is no `{name}`; known names: {', '.join(sorted(known))}")
    return [source for source in sources if source.name in names]


def site_address() -> str:
    """Return the address of the published site, without a slash at the end."""
    return str(_config()["html"]["baseurl"]).rstrip("/")


def repository() -> tuple[str, str]:
    """Return (address of the repository, branch that Colab and the source links open)."""
    repository = _config()["repository"]
    return str(repository["url"]).rstrip("/"), str(repository["branch"])


def _config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
