"""How fast the book gets made, as ratios within one run: `python benchmarks/pipeline.py` (a few minutes).

In a copy of the book, one after another: the floor (seconds in cells, one notebook at a time), our execution with one
kernel per core, the stock way (`jupyter-book build` executing the same pages itself), a build of the site with the
outputs at hand, and what one changed sentence or one changed lesson costs.

The stock way gets the same chapters, the same notebooks of solutions without outputs, the same extensions and the same
environment variables for its kernels; only who executes differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from course.kernels import surroundings  # noqa: E402  (the repository has to be on the path first)

COPIED = ("chapters", "notebooks", "exercises", "solutions", "_config.yml", "_toc.yml", "requirements.txt")


def run(root: Path, *arguments: str) -> float:
    """Run a command of the build tool on the copy and return its seconds."""
    environment = {**os.environ, "COURSE_ROOT": str(root), "COURSE_ENVIRONMENT": "current"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "course", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"`python -m course {' '.join(arguments)}` failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def copy_book(root: Path) -> None:
    """Copy what the build reads; data sets are linked, not copied."""
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name)
        else:
            shutil.copy2(source, root / name)
    (root / "data").symlink_to(REPOSITORY / "data", target_is_directory=True)


def seconds_in_cells(root: Path) -> float:
    """Return the seconds that all cells took, from the executed notebooks."""
    total = 0.0
    for folder in ("notebooks", "solutions"):
        for path in (root / folder).glob("*.ipynb"):
            total += nbformat.read(path, as_version=4).metadata["course"]["outputs"]["seconds"]
    return total


def stock(root: Path) -> float:
    """Let Jupyter Book execute the lessons and solutions itself and return its seconds."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["execute"] = {"execute_notebooks": "force", "timeout": 600, "exclude_patterns": ["exercises/*"]}
    config["sphinx"]["config"]["extensions"].remove("course.sphinx_extension")  # it keeps Sphinx from executing
    config["sphinx"]["config"]["extensions"].append("stock_directives")
    config["sphinx"]["local_extensions"] = {"stock_directives": "."}
    config["sphinx"]["config"].update(html_math_renderer="mathjax", katex_prerender=False)
    config["sphinx"]["config"]["extensions"].remove("sphinxcontrib.katex")
    (root / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    # The two directives of the course, so that the pages are the same; nothing else of its extension.
    (root / "stock_directives.py").write_text(
        "from course import curriculum\nfrom course.sphinx_extension import Coverage, Quiz\n\n\ndef setup(app):\n"
        "    curriculum.write_tables()\n"
        "    app.add_config_value('comments_config', {}, '')\n"
        "    app.add_directive('quiz', Quiz)\n    app.add_directive('coverage', Coverage)\n",
        encoding="utf-8",
    )
    for path in (root / "solutions").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    environment = {**surroundings(), "COURSE_ROOT": str(root), "PYTHONPATH": str(REPOSITORY)}
    # Sphinx executes a page in the folder of its source: there the lessons look for ../data, as in notebooks/.
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(root),
        "-q",
        "--all",
    ]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode or "Executing notebook failed" in done.stderr:
        raise SystemExit(f"the stock build failed:\n{done.stdout}\n{done.stderr}")
    return seconds


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a file."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="How fast the book gets made, as ratios within one run.")
    parser.add_argument("--json", type=Path, help="also write the seconds to this file")
    chosen = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "stock"
        for root in (ours, theirs):
            root.mkdir()
            copy_book(root)
        seconds: dict[str, float] = {}
        print("executing one notebook at a time …", flush=True)
        run(ours, "execute", "--force", "--jobs", "1")
        seconds["cells"] = seconds_in_cells(ours)
        print("executing one per core …", flush=True)
        seconds["execute"] = run(ours, "execute", "--force")
        print("building the site …", flush=True)
        seconds["site"] = run(ours, "book", "--fresh")
        print("the stock way …", flush=True)
        seconds["stock"] = stock(theirs)
        print("one changed sentence, one changed lesson …", flush=True)
        edit(ours / "chapters" / "tensors.md", "\n## Recap", "\nOne sentence that was not here before.\n\n## Recap")
        seconds["sentence"] = run(ours, "book")
        assert "One sentence that was not here before." in (ours / "_build/html/chapters/tensors.html").read_text(
            encoding="utf-8"
        )
        edit(ours / "chapters" / "tensors.md", "import torch\n", "import torch  # changed\n")
        seconds["lesson"] = run(ours, "execute") + run(ours, "book")
    cold = seconds["execute"] + seconds["site"]
    rows = [
        ("seconds in cells, one notebook at a time (the floor on one core)", seconds["cells"], ""),
        (
            f"our execution, one kernel per core ({cores} cores)",
            seconds["execute"],
            f"{seconds['execute'] / (seconds['cells'] / cores):.2f} x (cells / {cores})",
        ),
        ("our site build, outputs at hand", seconds["site"], ""),
        ("both: a full cold run", cold, f"{seconds['stock'] / cold:.2f} x faster than stock"),
        ("the stock way: jupyter-book build executes the same pages", seconds["stock"], ""),
        (
            "one changed sentence, until it is on the page",
            seconds["sentence"],
            f"{seconds['sentence'] / cold:.3f} of a cold run",
        ),
        (
            "one changed lesson (tensors), executed and on the page",
            seconds["lesson"],
            f"{seconds['lesson'] / cold:.3f} of a cold run",
        ),
    ]
    print()
    for title, taken, ratio in rows:
        print(f"{taken:8.1f} s  {title:70}  {ratio}")
    if chosen.json:
        chosen.json.write_text(json.dumps(seconds, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
