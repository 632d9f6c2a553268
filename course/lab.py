"""Open JupyterLab where the lessons and exercises are."""

from __future__ import annotations

import argparse
import subprocess
import sys

from course.kernels import surroundings
from course.paths import ROOT


def command(options: list[str]) -> int:
    """Start JupyterLab in the repository; further options go to it."""
    parser = argparse.ArgumentParser(prog="python -m course lab", description="Open JupyterLab on the lessons and exercises.")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of JupyterLab, for example --no-browser")
    chosen = parser.parse_args(options)
    print("Lessons are in notebooks/, exercises in exercises/. Save your own copy of a notebook before you change it (File, Save Notebook As).")
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}", "--LabApp.default_url=/lab/tree/notebooks", *chosen.options]
    environment = {name: value for name, value in surroundings().items() if name not in ("IPYTHONDIR", "PYTHONWARNINGS", "NO_COLOR")}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment).returncode
    except KeyboardInterrupt:
        return 0
