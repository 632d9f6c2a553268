"""Where things live in the repository."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = Path(os.environ.get("COURSE_ROOT", REPOSITORY)).resolve()  # the tests build small books elsewhere
CHAPTERS = ROOT / "chapters"
NOTEBOOKS = ROOT / "notebooks"
EXERCISES = ROOT / "exercises"
SOLUTIONS = ROOT / "solutions"
DATA = ROOT / "data"
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"
SITE = BUILD / "html"
WORK = ROOT / "my-work"
LOCK = ROOT / "requirements.txt"


def relative(path: Path) -> str:
    """Return `path` as it is written in the repository, with forward slashes on every system."""
    return path.resolve().relative_to(ROOT).as_posix()
