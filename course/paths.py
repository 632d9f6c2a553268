"""Where things live in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
NOTEBOOKS = ROOT / "notebooks"
EXERCISES = ROOT / "exercises"
SOLUTIONS = ROOT / "solutions"
DATA = ROOT / "data"
BUILD = ROOT / "_build"
SITE = BUILD / "html"
LOCK = ROOT / "requirements.txt"


def relative(path: Path) -> str:
    """Return `path` as it is written in the repository, with forward slashes on every system."""
    return path.resolve().relative_to(ROOT).as_posix()
