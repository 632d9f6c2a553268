"""Open JupyterLab on a learner's own copies of the lessons and exercises."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from course.environment import say
from course.kernels import surroundings
from course.paths import EXERCISES, NOTEBOOKS, ROOT, WORK


def prepare() -> list[Path]:
    """Copy lessons and exercises that are not there yet into the learner's folder, and return the new copies.

    What a learner has changed is never overwritten; delete or rename a copy to get a fresh one.
    """
    WORK.mkdir(exist_ok=True)
    new = []
    for folder, ending in ((NOTEBOOKS, ""), (EXERCISES, "-exercises")):
        for path in sorted(folder.glob("*.ipynb")):
            copy = WORK / f"{path.stem}{ending}.ipynb"
            if not copy.exists():
                shutil.copyfile(path, copy)
                new.append(copy)
    return new


def command(options: list[str]) -> int:
    """Start JupyterLab in the learner's folder; further options go to it."""
    parser = argparse.ArgumentParser(
        prog="python -m course lab",
        description="Open JupyterLab on your own copies of lessons and exercises, in my-work/.",
    )
    parser.epilog = "Further options go to JupyterLab, for example --no-browser."
    _, further = parser.parse_known_args(options)
    for copy in prepare():
        say(f"new: {copy.relative_to(ROOT)}")
    say("your copies are in my-work/; what you change there is yours. Stop JupyterLab with Ctrl+C")
    arguments = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={WORK}", *further]
    environment = {
        name: value
        for name, value in surroundings().items()
        if name not in ("IPYTHONDIR", "PYTHONWARNINGS", "NO_COLOR")
    }
    try:
        return subprocess.run(arguments, cwd=WORK, env=environment).returncode
    except KeyboardInterrupt:
        return 0
