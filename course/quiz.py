"""The quiz block of the lessons: one question, options, an explanation for every option."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPTION = re.compile(r"- \[( |x)\] (.+)", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One answer: its text, why it is right or wrong, and which of the two."""

    text: str
    explanation: str
    right: bool


@dataclass(frozen=True)
class Quiz:
    """A question with its options in the order in which they are shown."""

    question: str
    options: tuple[Option, ...]


def parse(title: str, lines: list[str]) -> Quiz:
    """Parse the title and the body lines of a `{quiz}` block.

    Raises:
        ValueError: an option without explanation, fewer than two options, or no right one.
    """
    items: list[str] = []
    question = [title]
    for line in lines:
        if line.startswith("- ["):
            items.append(line)
        elif items:
            items[-1] += "\n" + line.strip()
        else:
            question.append(line.strip())
    options = []
    for item in items:
        found = OPTION.match(item.strip())
        if not found or " :: " not in found.group(2):
            raise ValueError(f"quiz option without ` :: explanation`: {item.strip()[:60]}")
        text, explanation = found.group(2).split(" :: ", 1)
        options.append(Option(text.strip(), explanation.strip(), found.group(1) == "x"))
    if len(options) < 2 or not any(option.right for option in options):
        raise ValueError(f"a quiz needs two options or more, one of them right: {title[:60]}")
    return Quiz("\n".join(question).strip(), tuple(options))
