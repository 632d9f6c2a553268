"""Build the site: Jupyter Book over `chapters/`, with the outputs of the committed notebooks and nothing executed."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.cache.main import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

from course import curriculum
from course.environment import say
from course.errors import CourseError
from course.notebooks import renew, targets
from course.paths import BUILD, CACHE, REPOSITORY, ROOT, SITE


def build(fresh: bool = False) -> dict[str, float]:
    """Build the site and return the seconds that each stage took.

    Raises:
        CourseError: outputs do not belong to their code, or Sphinx warned.
    """
    seconds = {}
    if fresh:
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        shutil.rmtree(CACHE, ignore_errors=True)
    started = time.perf_counter()
    if stale := renew(targets([])):
        names = ", ".join(map(str, stale))
        raise CourseError(
            f"{names}: the outputs do not belong to the present code, lock or data. Run `make execute` (it re-executes only what changed)"
        )
    seconds["renew texts, check that every output belongs to its code"] = time.perf_counter() - started

    started = time.perf_counter()
    fill_cache()
    curriculum.write_tables()
    seconds["hand the outputs over to Sphinx"] = time.perf_counter() - started

    started = time.perf_counter()
    say("building the pages (Sphinx)")
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(ROOT),
        "--path-output",
        str(ROOT),
        "-W",
        "--keep-going",
        "-n",
        "-q",
    ]
    status, said = _run(command)
    seconds["build the pages"] = time.perf_counter() - started
    if status:
        print(said, file=sys.stderr)
        raise CourseError(
            "Sphinx warned (see above: file, line and reason); warnings fail the build. Mend them and run `make book` again"
        )
    return seconds


def _run(command: list[str]) -> tuple[int, str]:
    """Run a program to its end and return (its exit status, what it said), leaving none of its own processes behind.

    It writes to a file, not to a pipe: a process that it left running would hold the pipe open for ever.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait()
        finally:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        output.seek(0)
        return status, output.read().decode("utf-8", errors="replace")


def fill_cache() -> None:
    """Put the outputs of the lessons where Sphinx looks for them.

    Its key there is the code with its cell metadata as MyST-NB reads it, so that reader makes the entry.
    Solutions and exercises are pages in the form of notebooks: they bring their outputs along.
    """
    handed_over = CACHE / "handed-over.json"  # notebook -> fingerprint of its text and outputs
    known = json.loads(handed_over.read_text(encoding="utf-8")) if handed_over.is_file() else {}
    cache = get_cache(str(CACHE))
    config = MdParserConfig(enable_extensions={"colon_fence", "dollarmath", "deflist"})
    for target in targets([]):
        if target.is_solution:
            continue
        now = hashlib.sha256(target.source.text.encode() + target.path.read_bytes()).hexdigest()
        if known.get(str(target)) == now:
            continue
        page = read_myst_markdown_notebook(target.source.text, config, path=target.source.path)
        recorded = [cell for cell in nbformat.read(target.path, as_version=4).cells if cell.cell_type == "code"]
        for cell, done in zip((cell for cell in page.cells if cell.cell_type == "code"), recorded, strict=True):
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        cache.cache_notebook_bundle(CacheBundleIn(nb=page, uri=str(target.path)), check_validity=False, overwrite=True)
        known[str(target)] = now
    handed_over.write_text(json.dumps(known, indent=1), encoding="utf-8")


def command(options: list[str]) -> int:
    """Build the site and say where it is and what took how long."""
    parser = argparse.ArgumentParser(
        prog="python -m course book", description="Build the site into _build/html; executes nothing, needs no data."
    )
    parser.add_argument("--fresh", action="store_true", help="build every page anew, not only what changed")
    seconds = build(parser.parse_args(options).fresh)
    for stage, taken in seconds.items():
        print(f"  {taken:6.1f} s  {stage}")
    print(
        f"\nThe book is ready: open {SITE / 'index.html'}\nor serve it: {sys.executable} -m http.server --directory {SITE}"
    )
    return 0
