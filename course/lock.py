"""Renew requirements.txt: one lock with hashes for Linux, macOS and Windows."""

from __future__ import annotations

import argparse
import subprocess
import sys

from course.errors import CourseError
from course.paths import LOCK, ROOT

HEAD = "# Made by `make lock` from requirements.in and the dependency groups of pyproject.toml; do not edit.\n"


def command(options: list[str]) -> int:
    """Resolve the loose requirements anew and write the lock."""
    parser = argparse.ArgumentParser(
        prog="python -m course lock", description="Renew requirements.txt from requirements.in and pyproject.toml."
    )
    parser.add_argument("--upgrade", action="store_true", help="take newer versions than the lock has now")
    chosen = parser.parse_args(options)
    arguments = [
        "uv",
        "pip",
        "compile",
        "requirements.in",
        "--group",
        "tools",
        "--group",
        "shown",
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
    ]
    arguments += ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--quiet", "--output-file", LOCK.name]
    arguments += ["--upgrade"] if chosen.upgrade else []
    if subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise CourseError("could not resolve the requirements (uv's message stands above)")
    LOCK.write_text(HEAD + LOCK.read_text(encoding="utf-8").removeprefix(HEAD), encoding="utf-8")
    print(f"wrote {LOCK.name}; run `make execute` next: every output is tied to the lock")
    return 0
