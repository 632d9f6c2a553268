"""What a notebook shows where MyST is unknown."""

import pytest

from course.errors import CourseError
from course.portable import portable, raw_myst, slug

SITE = "https://example.org/book"


def shown(text: str) -> str:
    return portable(text, SITE, "chapters/x.md:1")


def test_a_callout_becomes_a_block_quote_with_its_code_kept():
    assert (
        shown(":::{warning}\nMind\n\n```python\n:::{x}\n```\n:::")
        == "> **Warning**\n>\n> Mind\n>\n> ```python\n> :::{x}\n> ```"
    )


def test_an_admonition_keeps_its_title_and_loses_its_options():
    assert shown(":::{admonition} Predict `x`\n:class: hint\nWhat?\n:::") == "> **Predict `x`**\n>\n> What?"


def test_folded_text_and_links_in_it_still_work():
    assert shown(":::{dropdown} More `code`\nSee [the lesson](tensors.md#views).\n:::") == (
        "<details>\n<summary>More <code>code</code></summary>\n\n"
        f"See [the lesson]({SITE}/chapters/tensors.html#views).\n\n</details>"
    )


def test_a_quiz_shows_every_option_with_its_explanation():
    text = shown(":::{quiz} Which is `2`?\n- [ ] `1` :: Too **small**.\n- [x] `2` :: Yes,\n  it is.\n:::")
    assert text.count("<details>") == 2
    assert "<summary><code>1</code></summary>" in text
    assert "❌ **Not this one.** Too **small**." in text
    assert "✅ **Right.** Yes,\nit is." in text


def test_terms_and_links_lead_to_the_site_and_code_is_left_alone():
    assert shown("a {term}`leaf` and {term}`leaves <leaf>`") == (
        f"a [leaf]({SITE}/chapters/glossary.html#term-leaf) and [leaves]({SITE}/chapters/glossary.html#term-leaf)"
    )
    assert shown("[set](../exercises/x.ipynb) `[a](b.md)` [out](https://a.org/b.md) [here](#x)") == (
        f"[set]({SITE}/exercises/x.html) `[a](b.md)` [out](https://a.org/b.md) [here](#x)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":::{figure} a.png\n:::", "the directive `{figure}`"),
        (":::{note}\nnever closed", "is not closed"),
        ("see {doc}`this`", "the role `{doc}`this``"),
        (":::{quiz} Which?\n- [x] `1`\n- [ ] `2` :: no\n:::", "without ` :: explanation`"),
        (":::{quiz} Which?\n- [ ] `1` :: no\n- [ ] `2` :: no\n:::", "one of them right"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_its_place(text: str, message: str):
    with pytest.raises(CourseError) as refusal:
        shown(text)
    assert message in str(refusal.value)
    assert "chapters/x.md:1" in str(refusal.value)


@pytest.mark.parametrize("text", [":::{note}", "```{code-cell}\n```", "{term}`x`", "(label)=", "+++", "% comment"])
def test_raw_myst_is_found(text: str):
    assert raw_myst(text)


@pytest.mark.parametrize("text", ["a `{term}` b", "```python\nx = {1: 2}\n```", "a (b)= c", "100 % sure"])
def test_ordinary_markdown_is_not_taken_for_myst(text: str):
    assert raw_myst(text) is None


def test_slugs_are_those_of_the_site():
    assert slug("What `.grad` holds, and why") == "what-grad-holds-and-why"
