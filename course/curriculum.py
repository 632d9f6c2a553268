"""What the book must teach, item by item, and where it does."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from functools import cache

import yaml

from course.errors import CourseError
from course.paths import BUILD, CHAPTERS, relative
from course.portable import slug
from course.sources import Source, exercise_sets, pages

FILE = CHAPTERS / "curriculum.yml"
TABLES = BUILD / "coverage.md"


@dataclass(frozen=True)
class Place:
    """Where an item is taught: a section of a page, or a question of an exercise set."""

    source: Source
    anchor: str

    def __str__(self) -> str:
        return f"{self.source.where}#{self.anchor}"


@cache
def items() -> dict[str, dict[str, str]]:
    """Return the curriculum: topic -> item ID -> what it is about."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def declaring() -> list[Source]:
    """Return the pages and exercise sets whose front matter may declare items."""
    return [*pages(), *exercise_sets()]


def places() -> dict[str, list[Place]]:
    """Return where each item is taught, from the front matters of all pages.

    Raises:
        CourseError: an ID that the curriculum does not have, or a section that the page does not have.
    """
    found: dict[str, list[Place]] = {name: [] for topic in items().values() for name in topic}
    for source in declaring():
        anchors = _anchors(source)
        for anchor, names in source.covers.items():
            if anchor not in anchors:
                raise CourseError(
                    f"{source.where}: `covers` names the section `{anchor}`, which the page does not have; it has {', '.join(sorted(anchors))}"
                )
            for name in names:
                if name not in found:
                    raise CourseError(f"{source.where}: `covers` names {name}, which {relative(FILE)} does not have")
                found[name].append(Place(source, anchor))
    return found


def _anchors(source: Source) -> set[str]:
    if source.path.name.endswith(".exercises.md"):
        return {cell.metadata["question"] for cell in source.cells if "question" in cell.metadata}
    anchors, fenced = set(), False
    for cell in source.cells:
        if cell.kind != "markdown":
            continue
        for line in cell.source.splitlines():
            if line.lstrip().startswith(("```", "~~~")):
                fenced = not fenced
            elif not fenced and line.startswith("#"):
                anchors.add(slug(line.lstrip("#").strip()))
    return anchors


def markdown() -> str:
    """Return the coverage page's tables: a heading and a list per topic, each item linked to its section."""
    where = places()
    taught = sum(bool(found) for found in where.values())
    out = [
        f"**{taught} of {len(where)} items** are taught so far. An item without a link belongs to a chapter that is still to be written.",
        "",
    ]
    for topic, entries in items().items():
        count = sum(bool(where[name]) for name in entries)
        out += [f"## {topic} ({count} of {len(entries)})", ""]
        for name, text in entries.items():
            links = ", ".join(dict.fromkeys(_link(place) for place in where[name]))
            out.append(f"- **{name}** {_escaped(text)}{' → ' + links if links else ''}")
        out.append("")
    return "\n".join(out)


def write_tables() -> None:
    """Bring `TABLES` up to date for Sphinx: a page that depends on this one file is not built anew for each sentence."""
    text = markdown()
    if not TABLES.is_file() or TABLES.read_text(encoding="utf-8") != text:
        TABLES.parent.mkdir(exist_ok=True)
        TABLES.write_text(text, encoding="utf-8")


def _escaped(text: str) -> str:
    """Return `text` with the signs that Markdown would read as marks escaped, code spans left alone."""
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>$\[\]{}])", r"\\\1", part)
        for part in re.split(r"(`[^`]*`)", text)
    )


def _link(place: Place) -> str:
    name = place.source.name
    if place.source.path.name.endswith(".exercises.md"):
        return f"[{name}, exercise](../exercises/{name}.ipynb)"
    return f"[{name}]({name}.md#{place.anchor})"


def command(options: list[str]) -> int:
    """Print what is covered where, and what is not yet."""
    parser = argparse.ArgumentParser(
        prog="python -m course curriculum",
        description="List which curriculum item is covered where, and what is not yet.",
    )
    parser.add_argument(
        "topics", nargs="*", metavar="TOPIC", help="first letters of IDs, for example T A H (default: all)"
    )
    parser.add_argument("--open", action="store_true", help="list only what is not covered yet")
    parser.add_argument("--require", action="store_true", help="fail if any of the listed items is not covered")
    chosen = parser.parse_args(options)
    where = places()
    missing, listed = 0, 0
    for topic, entries in items().items():
        names = [name for name in entries if not chosen.topics or name.split("-")[0] in chosen.topics]
        if not names:
            continue
        count = sum(bool(where[name]) for name in names)
        print(f"\n{topic}: {count} of {len(names)} covered")
        missing += len(names) - count
        listed += len(names)
        for name in names:
            if where[name] and chosen.open:
                continue
            print(f"  {name:6} {', '.join(map(str, where[name])) or '—  ' + entries[name]}")
    print(f"\n{listed - missing} of {listed} items covered, {missing} open")
    if chosen.require and missing:
        raise CourseError(f"{missing} of the listed items are not covered yet")
    return 0
