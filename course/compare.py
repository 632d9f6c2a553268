"""Re-execute the committed notebooks with nbval and compare every output with what is recorded.

This module is also the pytest plugin that does it. nbval alone compares text exactly and leaves pictures out; here
decimal numbers may differ by a tolerance, a picture has to be a picture, a cell that needs a GPU is skipped and counted,
and exempt cells are counted and bounded.

A lesson is compared where a learner opens it: alone in an empty folder, with the libraries of requirements.in and no
others, and it must leave no file behind. Worked exercises are compared in their place, and so are lessons that declare
`optional:` because they show another library or the programs in `scripts/` (tests/test_alone.py runs these without).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy
import pytest
from nbformat import NotebookNode

from course import data, learner, usage
from course.environment import say
from course.errors import CourseError
from course.gpu_outputs import gpu_cells, is_gpu, require_gpu
from course.kernels import surroundings, threads
from course.notebooks import targets
from course.paths import BUILD, REPOSITORY, ROOT

TOLERANCE = 1e-4  # absolute and relative, unless a cell says otherwise
MOST_EXEMPT = 0.05  # of all code cells
MEASURED = BUILD / "measured.json"
PICTURES = ("image/png", "image/jpeg")

# A decimal number: with a point or an exponent. Whole numbers are counts, sizes and labels, and have to be equal.
DECIMAL = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)")


def alike(recorded: str, computed: str, tolerance: float = TOLERANCE) -> bool:
    """Say whether two outputs agree: the text exactly, decimal numbers within `tolerance` (absolute and relative).

    A recorded 0.0852 and a computed 0.0853 agree; 0.085 and 0.0852 do not agree in text (another number of decimals).
    """
    if recorded == computed:
        return True
    if _skeleton(recorded) != _skeleton(computed):
        return False
    pairs = zip(DECIMAL.findall(recorded), DECIMAL.findall(computed), strict=True)
    # One unit of the last printed place is allowed on top: printing rounds.
    return all(abs(float(a) - float(b)) <= tolerance + tolerance * abs(float(a)) + 1e-12 for a, b in pairs)


def _skeleton(text: str) -> str:
    """Return the text with its decimal numbers replaced by their number of decimals, and alignment spaces joined."""

    def places(found: re.Match[str]) -> str:
        mantissa = re.split("[eE]", found.group(0))[0]
        return f"<{len(mantissa.partition('.')[2])}>"

    return re.sub(r"[ ]+", " ", DECIMAL.sub(places, text))


def picture_problem(encoded: str) -> str | None:
    """Say what is wrong with a base64 picture; None if it can be decoded and shows something."""
    import matplotlib.image

    try:
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded)))
    except (ValueError, OSError, SyntaxError) as error:
        return f"cannot be decoded ({error})"
    return "is empty: all its pixels are equal" if numpy.ptp(pixels[..., :3]) == 0 else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--course-device", default="cpu", choices=["cpu", "cuda"], help="cuda: compare the cells that need a GPU"
    )
    parser.addoption("--course-cells", type=int, help="how many cells there are: fewer compared is a failure")


FILES: dict[Path, set[Path]] = {}  # of a notebook that is alone in its folder: what is there before it runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give nbval's cells the course's way of comparing."""
    item: Any  # nbval's cells are items with more attributes
    for item in items:
        if type(item).__name__ != "IPyNbCell":
            continue
        if item.path not in FILES and item.path.is_relative_to(BUILD):
            FILES[item.path] = set(item.path.parent.rglob("*"))
        on_gpu = item.config.getoption("--course-device") == "cuda"
        item.compare_outputs = _Comparison(item, on_gpu)
        if is_gpu(item.cell) and not on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if not every cell has been reported: two that pytest takes for one would pass unseen."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    expected = session.config.getoption("--course-cells")
    if expected is None or hasattr(session.config, "workerinput") or session.exitstatus:
        return
    reported = sum(len(reporter.stats.get(outcome, [])) for outcome in ("passed", "skipped"))
    if reported != expected:
        reporter.write_line(f"\n{reported} cells were compared or skipped, there are {expected}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class _Comparison:
    """Stands in for `IPyNbCell.compare_outputs` of one cell.

    On a GPU the cells that need one are compared; the others, recorded on a CPU, have to run through.
    """

    def __init__(self, item: Any, on_gpu: bool) -> None:
        self.item = item
        self.on_gpu = on_gpu
        self.original = item.compare_outputs
        self.tolerance = float(item.cell.metadata.get("tolerance", TOLERANCE))

    def __call__(
        self, computed: list[NotebookNode], recorded: list[NotebookNode], skip_compare: tuple[str, ...] | None = None
    ) -> bool:
        if self.on_gpu and not is_gpu(self.item.cell):
            return True
        problems = list(self._pictures(computed, recorded))
        if problems:
            self.item.comparison_traceback = problems
            return False
        return self.original(computed, self._forgiven(computed, recorded), skip_compare)

    def _pictures(self, computed: list[NotebookNode], recorded: list[NotebookNode]) -> Iterator[str]:
        for kind in PICTURES:
            before = [output["data"][kind] for output in recorded if kind in output.get("data", {})]
            after = [output["data"][kind] for output in computed if kind in output.get("data", {})]
            if len(before) != len(after):
                yield f"{len(after)} pictures ({kind}) computed, {len(before)} recorded"
            for index, picture in enumerate(after):
                if problem := picture_problem(picture):
                    yield f"picture {index + 1} {problem}"

    def _forgiven(self, computed: list[NotebookNode], recorded: list[NotebookNode]) -> list[NotebookNode]:
        """Return the recorded outputs, each text that agrees within the tolerance replaced by the computed one."""
        if len(computed) != len(recorded):
            return recorded
        result = []
        for before, after in zip(recorded, computed, strict=True):
            new = nbformat.from_dict(json.loads(json.dumps(before)))
            if before.output_type == after.output_type:
                for name in ("text", "evalue"):
                    if name in before and alike(before[name], after.get(name, ""), self.tolerance):
                        new[name] = after[name]
                for kind, text in before.get("data", {}).items():
                    other = after.get("data", {}).get(kind)
                    if isinstance(text, str) and isinstance(other, str) and alike(text, other, self.tolerance):
                        new["data"][kind] = other
            result.append(new)
        return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After the last cell of a notebook, write down what its kernel used, and look at what it left behind."""
    last = nextitem is None or nextitem.path != item.path
    kernel = getattr(item.parent, "kernel", None)
    if last and kernel is not None and kernel.is_alive():
        used = usage.of_kernel(kernel.km)
        folder = MEASURED.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{item.path.parent.name}-{item.path.stem}.json"
        (folder / name).write_text(json.dumps({"seconds": used.seconds, "memory": used.memory}), encoding="utf-8")
    result = yield
    if last and item.path in FILES and (left := set(item.path.parent.rglob("*")) - FILES[item.path]):
        names = ", ".join(sorted(path.relative_to(item.path.parent).as_posix() for path in left))
        pytest.fail(f"{item.path.name} leaves files beside itself: {names}", pytrace=False)
    return result


def over_budget(names: list[str], what: str) -> list[str]:
    """Return the notebooks that used more `what` ("seconds" or "memory") than declared, in the latest comparison."""
    unit = {"seconds": "s of processor time", "memory": "MiB of memory"}[what]
    found = []
    for target in targets(names):
        path = MEASURED.with_suffix("") / f"{target.path.parent.name}-{target.path.stem}.json"
        if not path.is_file():
            continue
        used, budget = json.loads(path.read_text(encoding="utf-8"))[what], getattr(target.source.budget, what)
        if used > budget:
            found.append(f"{target}: {used:.0f} {unit}, its budget in {target.source.where} is {budget:g}")
    return found


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def exempt(notebooks: list[Path]) -> tuple[list[str], int]:
    """Return (`notebook: reason` of each cell whose output is not compared, number of code cells)."""
    reasons, count = [], 0
    for path in notebooks:
        for index, cell in enumerate(_read(path).cells):
            if cell.cell_type != "code":
                continue
            count += 1
            if "nbval-ignore-output" in cell.metadata.get("tags", []):
                reasons.append(
                    f"{path.parent.name}/{path.name}, cell {index + 1}: {cell.metadata.get('varies', 'NO REASON GIVEN')}"
                )
    return reasons, count


def _nbval(paths: list[Path], cells: int, jobs: int, device: str) -> int:
    """Re-execute and compare notebooks, with so many code cells, in the order given; return pytest's exit status."""
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "course.compare",
        "--nbval",
        "-q",
        "-rs",
        "--durations=0",
        "--durations-min=5",
        "-n",
        str(jobs),
        "--dist",
        "loadfile",
        "--course-device",
        device,
        "--course-cells",
        str(cells),
        *map(str, paths),
    ]
    kernels = [learner.KERNELS, Path(sys.prefix) / "share" / "jupyter"]  # before any that the user has installed
    environment = {**surroundings(), "JUPYTER_PATH": os.pathsep.join(map(str, kernels))}
    return subprocess.run(arguments, cwd=REPOSITORY, env=environment).returncode


def command(options: list[str]) -> int:
    """Compare the named notebooks (all by default)."""
    parser = argparse.ArgumentParser(
        prog="python -m course compare",
        description="Re-execute the committed notebooks with nbval and compare every output.",
    )
    parser.add_argument("names", nargs="*", help="lessons (default: all)")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="cuda: compare the cells that need a GPU (the others have to run through); fails without one",
    )
    parser.add_argument("--jobs", type=int, help="notebooks at a time (default: as many as the cores have threads for)")
    parser.add_argument("--threads", type=int, default=threads(), help="threads of each kernel (default: 1)")
    chosen = parser.parse_args(options)
    # More threads than cores spin and wait for each other: several times slower, not faster.
    jobs = chosen.jobs or max(1, (os.cpu_count() or 1) // chosen.threads)
    os.environ["COURSE_THREADS"] = str(chosen.threads)
    selected = targets(chosen.names)
    if chosen.device == "cuda":
        require_gpu()
        selected = [target for target in selected if target.path.is_file() and gpu_cells(_read(target.path))]
        count = sum(len(gpu_cells(_read(target.path))) for target in selected)
        if not count:
            raise CourseError("none of these notebooks has a cell that needs a GPU: there is nothing to compare")
        # nbval lets a cell without a recorded run pass.
        if missing := [
            str(each) for each in selected if any("recorded" not in c.metadata for c in gpu_cells(_read(each.path)))
        ]:
            raise CourseError(
                f"{', '.join(missing)}: cells that need a GPU have never been recorded; run `python -m course execute --device cuda` first"
            )
        say(f"{count} cells that need a GPU, in {len(selected)} notebooks; the other cells have to run through")
    data.require(sorted({name for target in selected for name in target.source.datasets}))
    paths = [target.path for target in selected]
    for path in paths:
        if not path.is_file():
            raise CourseError(f"{path.relative_to(ROOT)} does not exist; run `make execute`")
    for old in MEASURED.with_suffix("").glob("*.json"):
        old.unlink()
    reasons, count = exempt(paths)
    print(
        f"{len(paths)} notebooks, {count} code cells; {len(reasons)} exempt from comparison (at most {MOST_EXEMPT:.0%} are allowed):"
    )
    for reason in reasons:
        print(f"  {reason}")
    if not chosen.names and len(reasons) > max(1, MOST_EXEMPT * count):  # the bound is the whole book's
        raise CourseError(
            f"{len(reasons)} of {count} cells are exempt from comparison, more than {MOST_EXEMPT:.0%}. Make outputs stable instead"
        )
    python = learner.ensure()
    say(f"lessons run alone, with {python}")
    # The longest first, so that no worker idles at the end.
    selected.sort(key=lambda target: -target.source.budget.seconds)
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="alone-", dir=BUILD) as folder:
        paths = [learner.place(each, Path(folder)) if each.is_alone else each.path for each in selected]
        status = _nbval(paths, count, min(jobs, len(paths)), chosen.device)
    if status:
        raise CourseError(
            "outputs differ (see above). If the new ones are right, run `make execute` and look at the change before you commit it"
        )
    if chosen.threads == 1:  # budgets are declared for one thread
        for line in over_budget(chosen.names, "seconds"):
            # A slow or busy machine is no fault of the lesson: `course check` holds the recorded time against the budget.
            say(f"slower here than its budget (no failure): {line}")
        if over := over_budget(chosen.names, "memory"):
            raise CourseError("over budget: " + "; ".join(over))
    return 0
