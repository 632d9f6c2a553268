"""Remove what the commands made outside of the committed files."""

from __future__ import annotations

import argparse
import shutil

from course.paths import BUILD, ROOT

CACHES = (".pytest_cache", ".ruff_cache", ".mypy_cache")


def command(options: list[str]) -> int:
    """Delete `_build` and the tools' caches; keep the data sets and the environment."""
    argparse.ArgumentParser(
        prog="python -m course clean", description="Remove _build and the caches of the tools."
    ).parse_args(options)
    for folder in (BUILD, *(ROOT / name for name in CACHES)):
        if folder.exists():
            shutil.rmtree(folder)
            print(f"removed {folder.relative_to(ROOT)}")
    return 0
