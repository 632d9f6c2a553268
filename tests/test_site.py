"""The built site, as a reader meets it: in a real browser, on a desktop and on a phone, light and dark."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
from conftest import REPOSITORY

from course.paths import ROOT, SITE
from course.sources import lessons, repository, site_address, toc

PAGES = [f"{page.removesuffix('.md')}.html" for page in toc()]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SERIOUS = ("serious", "critical")  # what axe calls a fault that keeps people from reading
AXE = REPOSITORY / "node_modules" / "axe-core" / "axe.min.js"

browser_needed = pytest.mark.browser


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Serve the built site on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    assert (SITE / "index.html").is_file(), "build the site first: `make book`"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """Start one browser for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["COURSE_CHROMIUM"], args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def profiles(chromium) -> dict:
    """Return the browser's profiles by (size, scheme); each keeps the theme's files in its cache, as a reader's does."""
    return {}


@pytest.fixture
def visit(chromium, profiles, address):
    """Return a function that opens a page and reports what went wrong while it loaded."""
    tabs = []

    def open_page(page: str, size: str = "desktop", scheme: str = "light"):
        width, height = SIZES[size]
        if (size, scheme) not in profiles:
            screen = {"width": width, "height": height}
            profiles[size, scheme] = chromium.new_context(viewport=screen, color_scheme=scheme)
        tab = profiles[size, scheme].new_page()
        tabs.append(tab)
        tab.problems = []
        tab.on(
            "console",
            lambda message: tab.problems.append(f"console: {message.text}") if message.type == "error" else None,
        )
        tab.on("pageerror", lambda error: tab.problems.append(f"script: {error}"))
        tab.on("requestfailed", lambda request: tab.problems.append(f"failed: {request.url}"))
        tab.on(
            "response",
            lambda answer: tab.problems.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None,
        )

        def watch(request) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                tab.problems.append(f"another host: {request.url}")

        tab.on("request", watch)
        tab.goto(f"{address}/{page}")
        tab.wait_for_load_state("networkidle")
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


@browser_needed
@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_from_this_host_alone_fits_the_screen_and_is_accessible(visit, page: str):
    tab = visit(page, "desktop", "light")
    assert tab.problems == []
    assert tab.locator("article h1").count() == 1
    broken = tab.evaluate(
        "[...document.querySelectorAll('article img')].filter(i => !i.alt || !i.naturalWidth).map(i => i.src)"
    )
    assert broken == [], "pictures that do not load or have no alternative text"
    for scheme in ("dark", "light"):
        _look_at(tab, "desktop", scheme)
        assert tab.evaluate(MARK_LOOKS, scheme) > 1
    _fits_whatever_the_font(tab, "desktop")
    tab.evaluate(THIN_OUT)
    assert _faults(tab, "light") == {}
    # The window is only ever made narrower: the theme slides its bars in when it gets wider, and axe would meet them moving.
    _look_at(tab, "phone", "dark")
    _fits_whatever_the_font(tab, "phone")
    assert _faults(tab, "dark") == {}
    drawn = tab.eval_on_selector_all(
        ".cell_output img", "images => images.map(i => [i.classList.contains('photo'), getComputedStyle(i).filter])"
    )
    assert all((look == "none") == photo for photo, look in drawn), "a drawn figure that is not readable in dark mode"
    assert tab.problems == []


def _look_at(tab, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": height})
    # The theme follows in its own time; if it does not, this raises.
    tab.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)


def _fits_whatever_the_font(tab, size: str) -> None:
    """Check that nothing sticks out, with WCAG's text spacing (1.4.12) either: other fonts are wider. Formulas bring theirs."""
    assert _fits(tab), f"the page scrolls sideways on a {size}"
    wider = "letter-spacing: 0.12em !important; word-spacing: 0.16em !important"
    style = tab.add_style_tag(content=f"*:not(.katex, .katex *) {{ {wider} }}")
    assert _fits(tab), f"the page scrolls sideways on a {size} where letters are wider"
    style.evaluate("style => style.remove()")


def _fits(tab) -> bool:
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


# Marks, of the elements that hold text, the first of each look in this scheme: color, size, weight, what lies behind.
MARK_LOOKS = """scheme => {
    const seen = new Set();
    for (const element of document.querySelectorAll("article *")) {
        const holdsText = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!holdsText || !element.checkVisibility()) continue;
        const own = getComputedStyle(element);
        const look = [own.color, own.fontSize, own.fontWeight, own.textShadow];
        for (let above = element; above; above = above.parentElement) {
            const style = getComputedStyle(above);
            look.push(style.backgroundColor, style.backgroundImage, style.opacity, style.filter);
            if (!style.backgroundColor.startsWith("rgba") && style.opacity === "1") break;
        }
        if (!seen.has(look.join())) element.setAttribute(`data-${scheme}`, "");
        seen.add(look.join());
    }
    return seen.size;
}"""

# Code is thousands of spans in few looks, on which axe would spend nearly all of its time: what looks like another one in
# both schemes becomes plain text.
THIN_OUT = """() => {
    const marked = "[data-light], [data-dark]";
    for (const span of document.querySelectorAll("div.highlight span"))
        if (!span.matches(marked) && !span.querySelector(marked)) span.replaceWith(span.textContent);
}"""


def _faults(tab, scheme: str) -> dict[str, str]:
    """Return the serious faults that axe finds in the article, which is ours: rule -> the first element that breaks it.

    The bars around the article are the theme's. Colors alone depend on the scheme: in dark mode nothing else is judged.
    """
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    all_others = {"rules": {"color-contrast": {"enabled": False}}}
    runs = [({"include": [[f"[data-{scheme}]"]]}, {"runOnly": ["color-contrast"]})]
    if scheme == "light":
        runs.append(({"include": [["article"]]}, all_others))
    faults = {}
    for where, options in runs:
        options = {"resultTypes": ["violations"], "preload": False, **options}  # it would fetch style sheets again
        found = tab.evaluate("([where, options]) => axe.run(where, options)", [where, options])["violations"]
        faults |= {each["id"]: each["nodes"][0]["html"][:200] for each in found if each["impact"] in SERIOUS}
    return faults


@browser_needed
def test_a_color_that_hardly_stands_out_is_found_wherever_it_is(visit):
    tab = visit(PAGES[0])
    _look_at(tab, "desktop", "dark")
    tab.evaluate(MARK_LOOKS, "dark")
    assert _faults(tab, "dark") == {}
    tab.evaluate("document.querySelector('article p:last-of-type').style.color = '#333'")
    tab.evaluate(MARK_LOOKS, "dark")
    assert list(_faults(tab, "dark")) == ["color-contrast"]


@browser_needed
@pytest.mark.parametrize("page", ["search.html", "genindex.html"])
def test_a_page_of_the_theme_loads_too(visit, page: str):
    assert visit(page).problems == []


@browser_needed
def test_the_search_finds_a_word_of_a_lesson(visit):
    tab = visit("search.html?q=broadcasting")
    tab.wait_for_selector("#search-results li a")
    assert any(
        "tensors" in link
        for link in tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    )


# For each quiz option but the first: was its answer visible, is it once the option is clicked, and what does it say?
OPEN_ALL = """() => [...document.querySelectorAll("details.quiz-option")].slice(1).map(option => {
    const answer = option.querySelector(".quiz-answer"), before = answer.checkVisibility();
    option.querySelector("summary").click();
    return [before, answer.checkVisibility(), answer.innerText];
})"""


@browser_needed
@pytest.mark.parametrize("lesson", [lesson.name for lesson in lessons() if ":::{quiz}" in lesson.text])
def test_every_quiz_option_explains_itself_when_it_is_opened(visit, lesson: str):
    tab = visit(f"chapters/{lesson}.html", "phone")
    assert tab.problems == []  # this one is loaded on a phone
    options = tab.locator("details.quiz-option")
    assert options.count() >= 6
    first = options.first.locator(".quiz-answer")
    assert not first.is_visible()
    options.first.locator("summary").click()  # as a finger does; the others are opened by a script, all at once
    assert first.is_visible()
    opened = tab.evaluate(OPEN_ALL)
    assert len(opened) == options.count() - 1
    for was_visible, is_visible, answer in opened:
        assert (was_visible, is_visible) == (False, True)
        assert re.match(r"(Right|Not this one)\.\s+\S", answer)


@browser_needed
def test_mathematics_is_part_of_the_page_and_needs_no_script(visit):
    tab = visit("chapters/autograd.html")
    assert tab.locator(".katex-display").count() > 0
    assert tab.locator(".katex-error").count() == 0
    assert tab.evaluate("document.fonts.check('16px KaTeX_Math')")
    assert not tab.evaluate("typeof MathJax !== 'undefined'")


@pytest.mark.parametrize("page", PAGES)
def test_the_buttons_of_a_page_lead_to_its_notebook(page: str):
    html = (SITE / page).read_text(encoding="utf-8")
    folder, name = page.removesuffix(".html").split("/")
    path = ROOT / {"chapters": "notebooks"}.get(folder, folder) / f"{name}.ipynb"
    colab = re.findall(r'href="(https://colab\.research\.google\.com/[^"]+)"', html)
    if not path.is_file():
        assert colab == []
        return
    home, branch = repository()
    where = f"{home.replace('https://github.com', 'https://colab.research.google.com/github')}/blob/{branch}/"
    assert colab[0] == where + path.relative_to(ROOT).as_posix(), "the button comes first on the page"
    assert all((ROOT / link.removeprefix(where)).is_file() for link in colab)
    nbformat.validate(nbformat.read(path, as_version=4))
    downloads = re.findall(r'href="([^"]+\.ipynb)"', html)
    local = [link for link in downloads if not link.startswith("https:")]
    assert local, "no download button"
    for link in local:
        assert (SITE / page).parent.joinpath(link).resolve().read_bytes() == path.read_bytes()


@pytest.mark.parametrize("page", PAGES)
def test_view_source_leads_to_the_file_that_the_page_is_made_from(page: str):
    home, branch = repository()
    html = (SITE / page).read_text(encoding="utf-8")
    sources = re.findall(re.escape(f'href="{home}/blob/{branch}/') + r'([^"?]+)', html)
    assert any((ROOT / source).is_file() and Path(source).stem == Path(page).stem for source in sources), sources


@pytest.mark.parametrize("lesson", [lesson.name for lesson in lessons()])
def test_the_outputs_on_a_page_are_those_of_its_notebook(lesson: str):
    html = (SITE / "chapters" / f"{lesson}.html").read_text(encoding="utf-8")
    notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", as_version=4)
    shown = re.sub(r"<[^>]+>", "", html)
    import html as escapes

    shown = escapes.unescape(shown)
    pictures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text") if output.output_type == "stream" else output.get("data", {}).get("text/plain")
            if "image/png" in output.get("data", {}):
                pictures += 1
            elif text:
                assert text.strip() in shown, text
    assert len(re.findall(r'<img [^>]*src="\.\./_images/', html)) == pictures
    outputs = notebook.metadata["course"]["outputs"]
    assert f"Outputs of this page: torch {outputs['torch']} on {outputs['device']}, {outputs['date']}" in shown


def test_every_link_from_a_notebook_to_the_site_leads_somewhere():
    base = site_address()
    broken = []
    for path in sorted(ROOT.glob("*/*.ipynb")):
        if path.parent.name not in ("notebooks", "exercises", "solutions"):
            continue
        text = json.dumps(
            [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"],
            ensure_ascii=False,
        )
        for link in set(re.findall(re.escape(base) + r"/[^)\s\"\\]+", text)):
            target = urlparse(link[len(base) + 1 :])
            page = SITE / unquote(target.path)
            if not page.is_file() or (
                target.fragment and f'id="{target.fragment}"' not in page.read_text(encoding="utf-8")
            ):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_no_page_names_a_script_style_or_font_of_another_host():
    found = []
    for path in SITE.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        loads = re.findall(r'<(?:script|link|img|iframe|source)[^>]+(?:src|href)="(https?://[^"]+)"', html)
        found += [f"{path.relative_to(SITE)}: {link}" for link in loads if not link.startswith(site_address())]
    assert found == []


@browser_needed
def test_the_cheat_sheet_is_printed_on_two_pages(visit):
    printed = visit("chapters/cheat-sheet.html").pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 2


def test_no_page_holds_a_folder_of_this_machine():
    for path in [*SITE.rglob("*.html"), *SITE.rglob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) + "/" not in text, path
        assert str(Path.home()) + "/" not in text, path
