"""`python -m course COMMAND`: the commands behind the Makefile, the same on Linux, macOS and Windows."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

from course import environment
from course.errors import CourseError

# name -> (module with the function `command`, one line of help, function that adds options)
COMMANDS = {
    "setup": (None, "create or update the environment in .venv"),
    "book": ("course.site", "build the site into _build/html; executes nothing, needs no data"),
    "test": ("course.testing", "run every test: unit, notebooks, exercises, derived files, the site in a browser"),
    "lab": ("course.lab", "open JupyterLab on the lessons and exercises"),
    "execute": ("course.execute", "make notebooks, exercises and solutions from chapters/, re-executing what changed"),
    "check": ("course.checks", "prove that derived files are up to date and exercises, budgets and curriculum hold"),
    "compare": ("course.compare", "re-execute the committed notebooks with nbval and compare every output"),
    "floor": ("course.floor", "compare with the oldest libraries that requirements.in admits; options as for compare"),
    "check-exercises": (
        "course.exercise_checks",
        "try solutions, stubs and wrong answers of exercise sets against their checks",
    ),
    "curriculum": ("course.curriculum", "list which curriculum item is covered where, and what is not yet"),
    "data": ("course.data", "fetch MNIST and Fashion-MNIST, every file checked by SHA-256"),
    "nbgrader": ("course.exercises", "write an exercise set as an nbgrader assignment for an instructor"),
    "lock": ("course.lock", "renew requirements.txt from requirements.in and pyproject.toml"),
    "clean": ("course.clean", "remove what the commands made (not the data sets, not the environment)"),
}


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status; what a user can put right is told in one line."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m course",
        description="The build tool of The PyTorch Playground.",
        epilog=f"commands:\n{listing}\n\n`python -m course COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    module, line = COMMANDS[chosen.command]
    try:
        python = environment.ensure()
        if module is None:
            return 0
        if Path(sys.prefix).resolve() != environment.FOLDER.resolve() and python != Path(sys.executable):
            return _rerun(python, arguments)
        if "--help" not in chosen.options and "-h" not in chosen.options:
            environment.say(f"{chosen.command}: {line}")
        return importlib.import_module(module).command(chosen.options)
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("course: interrupted; nothing half-written was left behind", file=sys.stderr)
        return 130


def _rerun(python: Path, arguments: list[str]) -> int:
    """Run the same command with the environment's interpreter."""
    paths = [str(python.parent), os.environ.get("PATH", "")]
    surroundings = {**os.environ, "PATH": os.pathsep.join(paths)}
    return subprocess.run([str(python), "-m", "course", *arguments], env=surroundings).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
