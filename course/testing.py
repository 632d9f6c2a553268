"""`make test`: everything that has to hold, from one command on a fresh machine."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from course import checks, compare, data, datasets, site
from course.environment import say
from course.errors import CourseError
from course.gpu_outputs import require_gpu
from course.notebooks import targets
from course.paths import DATA, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MAC_BROWSER = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome on this machine (`COURSE_CHROMIUM` first), or None."""
    named = os.environ.get("COURSE_CHROMIUM")
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    candidates = [*([named] if named else []), *found, str(MAC_BROWSER)]
    return next((path for path in candidates if Path(path).is_file()), None)


def require_chromium() -> str:
    """Return the path of a Chromium, installing Debian's package where that is possible without asking.

    Raises:
        CourseError: there is none and it cannot be installed from here.
    """
    if found := find_chromium():
        return found
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("installing Debian's chromium for the tests of the site")
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            subprocess.run(
                ["apt-get", *arguments],
                stdout=subprocess.DEVNULL,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        if found := find_chromium():
            return found
    raise CourseError(
        "the tests of the site need Chromium or Chrome. Debian and Ubuntu: `sudo apt-get install chromium`; elsewhere install Chrome, or set "
        "COURSE_CHROMIUM to its program. `python -m course test --no-browser` leaves these tests out and shows them as skipped"
    )


def fetch_data() -> None:
    """Fetch the data sets that the lessons use, if they are not there."""
    for name in sorted({name for target in targets([]) for name in target.source.datasets}):
        data.fetch(datasets.named(name), DATA)


def build_book() -> None:
    """Build the site afresh."""
    site.build(fresh=True)


def run_pytest(jobs: int, browser: str | None, selection: list[str]) -> None:
    """Run the tests in `tests/`, or those that the options in `selection` leave."""
    environment = {**os.environ, **({"COURSE_CHROMIUM": browser} if browser else {})}
    # `worksteal`: tests last from a millisecond to minutes; a process that has nothing left takes over from another.
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-n",
        str(jobs),
        "--dist",
        "worksteal",
        "--durations=30",
        "--durations-min=5",
        "tests",
    ]
    if browser is None:
        arguments.append("--no-browser")
    if subprocess.run([*arguments, *selection], cwd=ROOT, env=environment).returncode:
        raise CourseError("tests failed; see above")


def command(options: list[str]) -> int:
    """Run all stages and print what took how long."""
    parser = argparse.ArgumentParser(prog="python -m course test", description="Run every test.")
    parser.add_argument(
        "--no-browser", action="store_true", help="skip the tests that need Chromium (they are shown as skipped)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time (default: one per core)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="cuda: run what needs a GPU, and only that; fails without one",
    )
    chosen = parser.parse_args(options)
    if chosen.device == "cuda":
        require_gpu()
        return run_stages(
            [
                ("fetch and verify the data sets", fetch_data),
                ("tests that need a GPU", lambda: run_pytest(1, None, ["-m", "gpu"])),
                ("re-execute the cells that need a GPU and compare", lambda: compare.command(["--device", "cuda"])),
            ]
        )
    browser = None if chosen.no_browser else require_chromium()
    return run_stages(
        [
            ("fetch and verify the data sets", fetch_data),
            ("check derived files, exercises, budgets, curriculum", lambda: checks.command([])),
            ("build the site", build_book),
            ("unit, site and stand-alone tests", lambda: run_pytest(chosen.jobs, browser, [])),
            ("re-execute every notebook and compare", lambda: compare.command(["--jobs", str(chosen.jobs)])),
        ]
    )


def run_stages(stages: list[tuple[str, Callable[[], object]]]) -> int:
    """Run stages one after another, the later ones also when an earlier one failed; print what took how long.

    Raises:
        CourseError: a stage failed; its title is named.
    """
    seconds, failures = [], []
    for title, stage in stages:
        say(title)
        started = time.perf_counter()
        try:
            stage()
        except CourseError as error:
            print(f"course: {error}", file=sys.stderr, flush=True)
            failures.append(title)
        seconds.append((time.perf_counter() - started, title))
    print()
    for taken, title in seconds:
        print(f"  {taken:6.1f} s  {'FAILED  ' if title in failures else ''}{title}")
    if failures:
        raise CourseError(f"failed: {'; '.join(failures)}")
    print("\nAll tests passed.")
    return 0
