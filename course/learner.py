"""A notebook where a learner opens it: alone in an empty folder, with the libraries of requirements.in and a kernel.

That is what Colab gives. The environment lies inside of the one that runs this, and its libraries have the same
versions; `python -m course floor` so has a learner with the oldest ones.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import filelock  # this and packaging come with torch and pytest
import nbformat
from packaging.version import Version

from course.environment import python_of, say
from course.errors import CourseError
from course.notebook_files import write
from course.notebooks import Target
from course.paths import DATA, REPOSITORY

FOLDER = Path(sys.prefix) / "learner"
KERNELS = FOLDER / "jupyter"  # a folder for JUPYTER_PATH
KERNEL = "learner"
LIBRARIES = REPOSITORY / "requirements.in"


def ensure() -> Path:
    """Bring the environment of a learner up to date and return its interpreter.

    Raises:
        CourseError: the packages could not be installed.
    """
    # These folders only: a library that brings others inside of it may have put them on Python's path.
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    installed = importlib.metadata.distributions(path=sorted(folders))
    versions = sorted({f"{each.name}=={Version(each.version).public}" for each in installed})
    wanted = hashlib.sha256("\n".join([*versions, LIBRARIES.read_text(encoding="utf-8")]).encode()).hexdigest()
    stamp, python = FOLDER / "course-stamp.txt", python_of(FOLDER)
    with filelock.FileLock(f"{FOLDER}.lock"):  # several tests may ask at once
        if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and python.exists()):
            say(f"setting up the environment of a learner in {FOLDER}")
            _install(versions, python)
            stamp.write_text(wanted, encoding="utf-8")
    return python


def _install(versions: list[str], python: Path) -> None:
    uv = [sys.executable, "-m", "uv"]
    install = [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
    create = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)]
    if subprocess.run(create).returncode == 0:
        constraints = FOLDER / "constraints.txt"
        constraints.write_text("\n".join(versions) + "\n", encoding="utf-8")
        install += ["--constraint", str(constraints), "-r", str(LIBRARIES), "ipykernel"]
        if subprocess.run(install).returncode == 0:
            start = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            place = KERNELS / "kernels" / KERNEL
            place.mkdir(parents=True)
            description = {"argv": start, "display_name": "Python of a learner", "language": "python"}
            (place / "kernel.json").write_text(json.dumps(description), encoding="utf-8")
            return
    raise CourseError(
        "could not set up the environment of a learner (uv's message stands above). Check the network and run the same command again"
    )


def place(target: Target, folder: Path) -> Path:
    """Put a committed notebook alone into a folder of its own, and its data sets beside it, where torchvision would.

    Returns:
        The copy, in `folder/NAME/notebooks`; it asks for the kernel of a learner.
    """
    path = folder / target.source.name / target.path.parent.name / target.path.name
    path.parent.mkdir(parents=True)
    notebook = nbformat.read(target.path, as_version=4)
    notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    write(notebook, path)
    if target.source.datasets:
        shutil.copytree(DATA, path.parent / "data", copy_function=_link)
    return path


def _link(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system
        shutil.copy2(source, copy)
