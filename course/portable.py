"""Rewrite a lesson's MyST Markdown so that it reads well where MyST is unknown: Colab, GitHub, VS Code, plain Jupyter.

Callouts become block quotes, folded text and quiz options become `<details>`, glossary terms and links between pages
become links to the published site. Mathematics and tables are left alone: every notebook viewer renders them.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

from course import quiz
from course.errors import CourseError

CALLOUTS = {"note": "Note", "tip": "Tip", "warning": "Warning", "important": "Important"}
OPENING = re.compile(r"^(:{3,})\{([a-z-]+)\}\s*(.*)$")
CODE_SPAN = re.compile(r"(`+)(?:(?!\1).)*?\1(?!`)", re.DOTALL)
CODE_SPAN_ALONE = re.compile(r"(?<![`}])(`{1,2})(?!`)[^`\n]*(?<!`)\1(?!`)")  # not the text of a role
TERM = re.compile(r"\{term\}`([^`]+)`")
ROLE = re.compile(r"\{[a-z][a-z:-]*\}`[^`]*`")
PAGE_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^\s*(`{3,}|~{3,})")

_inline = MarkdownIt("commonmark")


def slug(text: str) -> str:
    """Return the anchor that a heading or a glossary term gets on the site."""
    words = re.sub(r"[^\w\s-]", "", text.lower().replace("`", ""))
    return re.sub(r"\s+", "-", words.strip())


def portable(text: str, site: str, where: str) -> str:
    """Return `text` (one Markdown cell of a chapter) without any MyST syntax.

    Args:
        text: the cell as written.
        site: address of the published site, which links between pages lead to.
        where: file and line, for error messages.

    Raises:
        CourseError: a directive or role that is not in the course's vocabulary, or one that is not closed.
    """
    return "\n".join(_blocks(text.splitlines(), site, where)).strip("\n")


def _blocks(lines: list[str], site: str, where: str) -> list[str]:
    out: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        opening = OPENING.match(line)
        if fence := FENCE.match(line):
            end = _end_of_fence(lines, index, fence.group(1))
            out.extend(lines[index : end + 1])
            index = end + 1
        elif opening:
            marks, name, title = opening.groups()
            end = _end_of_block(lines, index, marks, where)
            body = [each for each in lines[index + 1 : end] if not re.match(r"^:[a-z-]+: ", each)]
            out.extend(_block(name, title.strip(), body, site, where))
            index = end + 1
        else:
            end = index + 1
            while end < len(lines) and not FENCE.match(lines[end]) and not OPENING.match(lines[end]):
                end += 1
            out.extend(_inlines("\n".join(lines[index:end]), site, where).split("\n"))
            index = end
    return out


def _end_of_fence(lines: list[str], start: int, mark: str) -> int:
    for index in range(start + 1, len(lines)):
        stripped = lines[index].strip()
        if stripped.startswith(mark) and not stripped.strip(mark[0]):
            return index
    return len(lines) - 1


def _end_of_block(lines: list[str], start: int, marks: str, where: str) -> int:
    inside = None
    for index in range(start + 1, len(lines)):
        fence = FENCE.match(lines[index])
        if fence:
            inside = fence.group(1) if inside is None else (None if lines[index].strip().startswith(inside) else inside)
        elif inside is None and lines[index].rstrip() == marks:
            return index
    raise CourseError(f"{where}: `{lines[start]}` is not closed by a line `{marks}`")


def _block(name: str, title: str, body: list[str], site: str, where: str) -> list[str]:
    if name == "quiz":
        try:
            return _quiz(quiz.parse(title, body), site, where)
        except ValueError as error:
            raise CourseError(f"{where}: {error}") from None
    inner = _blocks(body, site, where)
    while inner and not inner[0].strip():
        inner.pop(0)
    if name == "dropdown":
        return ["<details>", f"<summary>{_html(title, site, where)}</summary>", "", *inner, "", "</details>"]
    if name in CALLOUTS or name == "admonition":
        heading = " · ".join(part for part in (CALLOUTS.get(name, ""), _inlines(title, site, where)) if part)
        return [f"> **{heading}**", ">", *(f"> {each}".rstrip() for each in inner)]
    raise CourseError(
        f"{where}: the directive `{{{name}}}` cannot be shown in a notebook; use one of {', '.join([*CALLOUTS, 'admonition', 'dropdown', 'quiz'])}"
    )


def _quiz(parsed: quiz.Quiz, site: str, where: str) -> list[str]:
    out = [f"**Question.** {_inlines(parsed.question, site, where)}", ""]
    for option in parsed.options:
        verdict = "✅ **Right.**" if option.right else "❌ **Not this one.**"
        out += [
            "<details>",
            f"<summary>{_html(option.text, site, where)}</summary>",
            "",
            f"{verdict} {_inlines(option.explanation, site, where)}",
            "",
            "</details>",
            "",
        ]
    return out


def _html(text: str, site: str, where: str) -> str:
    """Render one line of Markdown as HTML: inside `<summary>` viewers take text as it stands."""
    return _inline.renderInline(_inlines(text, site, where)).strip()


def _term_id(term: str) -> str:
    """Return the id that Sphinx gives a word of the glossary, which has them all in lower case."""
    return re.sub(r"[^a-zA-Z0-9._]+", "-", f"term-{term.lower()}").strip("-._")


def _inlines(text: str, site: str, where: str) -> str:
    """Rewrite roles and links, leaving code spans alone."""

    def term(found: re.Match[str]) -> str:
        shown, _, target = found.group(1).removesuffix(">").partition(" <")
        return f"[{shown}]({site}/chapters/glossary.html#{_term_id(target or shown)})"

    text = TERM.sub(term, text)
    spans: list[str] = []

    def keep(found: re.Match[str]) -> str:
        spans.append(found.group(0))
        return f"\x00{len(spans) - 1}\x00"

    if left := ROLE.search(text):
        raise CourseError(
            f"{where}: the role `{left.group(0)}` cannot be shown in a notebook; the only role is {{term}}"
        )
    text = CODE_SPAN.sub(keep, text)
    text = PAGE_LINK.sub(lambda found: f"]({_address(found.group(1), site)})", text)
    return re.sub(r"\x00(\d+)\x00", lambda found: spans[int(found.group(1))], text)


def _address(target: str, site: str) -> str:
    page, mark, anchor = target.partition("#")
    folder = "chapters"
    if page.startswith("../"):
        folder, _, page = page[3:].rpartition("/")
    stem = page.rsplit(".", 1)[0]
    return f"{site}/{folder + '/' if folder else ''}{stem}.html{mark}{anchor}"


RAW_MYST = (
    (re.compile(r"^:{3,}", re.MULTILINE), "a colon fence"),
    (re.compile(r"^\s*(?:`{3,}|~{3,})\{", re.MULTILINE), "a fenced directive"),
    (re.compile(r"\{[a-z][a-z:-]*\}`"), "a role"),
    (re.compile(r"^\([\w-]+\)=\s*$", re.MULTILINE), "a target"),
    (re.compile(r"^\+\+\+", re.MULTILINE), "a cell break"),
    (re.compile(r"^%\s", re.MULTILINE), "a MyST comment"),
)


def raw_myst(text: str) -> str | None:
    """Say what raw MyST syntax a notebook's Markdown cell still holds; None if there is none."""
    text = CODE_SPAN_ALONE.sub(lambda found: "·" * len(found.group(0)), text)
    for pattern, what in RAW_MYST:
        if found := pattern.search(text):
            line = text[: found.start()].count("\n") + 1
            return f"{what} in line {line} of the cell: {text.splitlines()[line - 1].strip()[:60]}"
    return None
