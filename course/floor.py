"""Compare the notebooks in a second environment, with the oldest libraries that requirements.in admits.

People come with other versions than the locked ones: Colab, a university's machine, last year's installation. Here
torch, torchvision, numpy and matplotlib are the oldest that requirements.in allows, the tools are the locked ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from course.environment import python_of, say
from course.errors import CourseError
from course.paths import LOCK, REPOSITORY

FOLDER = Path(os.environ.get("COURSE_FLOOR_VENV") or REPOSITORY / ".venv-floor")
LOOSE = REPOSITORY / "requirements.in"
PROJECT = REPOSITORY / "pyproject.toml"


def locked_tools() -> list[str]:
    """Return `name==version` of every library of pyproject.toml's groups, as the lock has it."""
    groups = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["dependency-groups"]
    names = {re.split(r"[<>=!~\[ ]", wanted, maxsplit=1)[0] for group in groups.values() for wanted in group}
    locked = re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return [f"{name}=={version}" for name, version in locked if name in names]


def ensure() -> Path:
    """Bring the second environment up to date and return its interpreter.

    Raises:
        CourseError: the packages could not be installed.
    """
    wanted = hashlib.sha256(LOCK.read_bytes() + LOOSE.read_bytes() + PROJECT.read_bytes()).hexdigest()
    stamp, python = FOLDER / "course-stamp.txt", python_of(FOLDER)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    say(f"setting up the environment with the oldest libraries in {FOLDER} (several GB)")
    uv = [sys.executable, "-m", "uv"]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(locked_tools()) + "\n", encoding="utf-8")
        install = [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
        # The tools are fixed by the constraints, so that `lowest-direct` decides over requirements.in alone.
        install += ["--resolution", "lowest-direct", "--constraint", str(constraints), "-r", str(LOOSE)]
        for group in ("tools", "shown"):
            install += ["--group", f"{PROJECT}:{group}"]
        for step in ([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)], install):
            if subprocess.run(step, cwd=REPOSITORY).returncode:
                raise CourseError(
                    "could not set up the environment with the oldest libraries (uv's message stands above). Check the network and run the same command again"
                )
    stamp.write_text(wanted, encoding="utf-8")
    return python


def command(options: list[str]) -> int:
    """Run `python -m course compare` with the same options in the second environment."""
    python = ensure()
    asked = "import torch, torchvision, numpy, matplotlib as m; print(*(f'{x.__name__} {x.__version__}' for x in (torch, torchvision, numpy, m)), sep=', ')"
    found = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True)
    say(f"comparing with {found.stdout.strip()}")
    environment = {**os.environ, "COURSE_ENVIRONMENT": "current"}
    return subprocess.run(
        [str(python), "-m", "course", "compare", *options], cwd=REPOSITORY, env=environment
    ).returncode
