"""Make the derived notebooks, executing the ones whose outputs no longer belong to their text.

One kernel per notebook, as many at once as there are cores, the longest first. A notebook is written only when all of
its cells ran; a failing cell is reported with its lesson, its line in `chapters/` and the error.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbclient
import nbclient.exceptions
from nbformat import NotebookNode

from course import data, gpu_outputs, usage
from course.environment import say
from course.errors import CourseError
from course.kernels import surroundings
from course.notebook_files import write
from course.notebooks import Target, key, renew, targets

CELL_TIMEOUT = 600  # seconds; far above any lesson's budget, it only ends a hang
DEVICE_CODE = """
import json as _json, torch as _torch
print(_json.dumps({"torch": _torch.__version__, "gpu": _torch.cuda.get_device_name() if _torch.cuda.is_available() else None}))
"""


@dataclass(frozen=True)
class Failure:
    """A cell that raised: where it is written, and what it said."""

    where: str
    error: str


def run(chosen: list[Target], jobs: int, force: bool) -> list[Failure]:
    """Bring the notebooks of `chosen` up to date and return the cells that failed."""
    stale = renew(chosen, force)
    if not stale:
        say(f"{len(chosen)} notebooks are up to date, nothing to execute")
        return []
    return _execute_all(stale, "cpu", jobs)


def record(chosen: list[Target], force: bool) -> list[Failure]:
    """Record what the cells that need a GPU print on this machine's, and return the cells that failed.

    All cells of such a notebook are run there, one notebook at a time; only what its GPU cells print is kept.
    """
    gpu_outputs.require_gpu()
    waiting = []
    for target in chosen:
        notebook = target.up_to_date()
        if notebook is None:
            raise CourseError(
                f"{target}: its other outputs do not belong to the present code; run `make execute` first"
            )
        cells = gpu_outputs.gpu_cells(notebook)
        if any(force or "recorded" not in cell.metadata for cell in cells):
            waiting.append(target)
    if not waiting:
        say("every cell that needs a GPU is recorded, nothing to execute (`--force` records anew)")
        return []
    return _execute_all(waiting, "cuda", jobs=1)


def _execute_all(waiting: list[Target], device: str, jobs: int) -> list[Failure]:
    data.require(sorted({name for target in waiting for name in target.source.datasets}))
    waiting = sorted(waiting, key=lambda target: -target.source.budget.seconds)  # the longest first: no core idles
    return asyncio.run(_run_all(waiting, device, jobs))


async def _run_all(waiting: list[Target], device: str, jobs: int) -> list[Failure]:
    say(f"executing {len(waiting)} notebooks on {device}, {jobs} at a time")
    started = time.perf_counter()
    places = asyncio.Semaphore(jobs)
    done = 0

    async def one(target: Target) -> Failure | None:
        nonlocal done
        async with places:
            outcome, seconds = await _execute(target, device)
        done += 1
        state = "FAILED" if isinstance(outcome, Failure) else "executed"
        say(f"[{done}/{len(waiting)}] {target}: {state} in {seconds:.1f} s")
        if isinstance(outcome, Failure):
            return outcome
        write(outcome, target.path)
        return None

    outcomes = await asyncio.gather(*(one(target) for target in waiting))
    say(f"executed in {time.perf_counter() - started:.1f} s")
    return [outcome for outcome in outcomes if outcome]


async def _execute(target: Target, device: str) -> tuple[NotebookNode | Failure, float]:
    """Execute one notebook; return it with its outputs and provenance, or the cell that failed."""
    notebook = target.fresh()
    target.path.parent.mkdir(exist_ok=True)
    started = time.perf_counter()
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        coalesce_streams=True,
        record_timing=True,
        store_widget_state=False,
        skip_cells_with_tag="gpu" if device == "cpu" else "skip-execution",
        resources={"metadata": {"path": str(target.path.parent)}},
    )
    try:
        # What the process itself says, not its cells, is dropped: at times it complains while it is being ended.
        place = {"env": surroundings(), "cwd": str(target.path.parent), "stderr": subprocess.DEVNULL}
        async with client.async_setup_kernel(**place):
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "code":
                    await client.async_execute_cell(cell, index)
            used = usage.of_kernel(client.km)
            facts = await _ask_kernel(client)
    except (
        nbclient.exceptions.CellExecutionError,
        nbclient.exceptions.CellTimeoutError,
        nbclient.exceptions.DeadKernelError,
    ) as error:
        return _failure(target, notebook, error), time.perf_counter() - started
    seconds = _seconds_in_cells(notebook)
    _tidy(notebook)
    source = {
        "torch": facts["torch"],
        "device": f"CPU ({_processor()})" if device == "cpu" else facts["gpu"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if device == "cuda":
        kept = target.up_to_date()
        assert kept is not None  # `record` has looked
        gpu_outputs.record(target.source, kept, notebook, source)
        return kept, time.perf_counter() - started
    notebook.metadata["course"] = {
        "key": key(target.source, notebook),
        "outputs": {**source, "seconds": round(seconds, 1)},
        "used": {"seconds": round(used.seconds, 1), "memory": round(used.memory)},
    }
    gpu_outputs.carry_over(target.source, target.recorded(), notebook)
    return notebook, time.perf_counter() - started


async def _ask_kernel(client: nbclient.NotebookClient) -> dict:
    """Ask the kernel what it computed with."""
    reply: list[str] = []
    kernel: Any = client.kc  # an asynchronous client, whose methods its type does not name
    await kernel.execute_interactive(
        DEVICE_CODE,
        store_history=False,
        output_hook=lambda message: reply.append(message["content"].get("text", "")),
        timeout=60,
    )
    return json.loads("".join(reply))


def _seconds_in_cells(notebook: NotebookNode) -> float:
    total = 0.0
    for cell in notebook.cells:
        times = cell.metadata.pop("execution", None)
        if times:
            begin, end = (
                datetime.datetime.fromisoformat(times[name]) for name in ("iopub.execute_input", "shell.execute_reply")
            )
            total += (end - begin).total_seconds()
    return total


def _tidy(notebook: NotebookNode) -> None:
    """Take out of tracebacks what belongs to this machine: colors, folders, the kernel's temporary files."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("execution", None)
            if output.output_type == "error":
                output.traceback = [tidy_traceback(line) for line in output.traceback]


def tidy_traceback(text: str) -> str:
    """Return a traceback's line with this machine's folders shortened to `…`."""
    for folder in {str(Path(sys.prefix)), os.path.realpath(sys.prefix), str(Path.home())}:
        text = text.replace(folder, "…")
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "this cell", text)


def _failure(target: Target, notebook: NotebookNode, error: Exception) -> Failure:
    """Find the source line of the cell that has an error output or was the last to run."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    written = [cell for cell in target.source.code if "wrong" not in cell.tags]
    ran = [
        index for index, cell in enumerate(code) if cell.execution_count or cell.outputs or "execution" in cell.metadata
    ]
    index = ran[-1] if ran else 0
    line = written[index].line
    name = getattr(error, "ename", type(error).__name__)
    said = getattr(error, "evalue", "") or (str(error).strip().splitlines() or [""])[-1]
    first = next((text for text in code[index].source.splitlines() if text.strip()), "")
    return Failure(f"{target.source.where}:{line} (code cell {index + 1}, `{first.strip()[:60]}`)", f"{name}: {said}")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file() and (
        found := re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
    ):
        return found.group(1).strip()
    return platform.processor() or platform.machine()


def command(options: list[str]) -> int:
    """Make the derived files, executing what changed."""
    parser = argparse.ArgumentParser(
        prog="python -m course execute",
        description="Make notebooks, exercises and solutions from chapters/, re-executing what changed.",
    )
    parser.add_argument("names", nargs="*", help="lessons (default: all)")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="cuda: record what the cells that need a GPU print on this machine's, leave all others (default: cpu)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="notebooks at a time (default: one per core)"
    )
    parser.add_argument("--force", action="store_true", help="execute also what is up to date")
    chosen = parser.parse_args(options)
    selected = targets(chosen.names)
    on_gpu = chosen.device == "cuda"
    failures = record(selected, chosen.force) if on_gpu else run(selected, chosen.jobs, chosen.force)
    for failure in failures:
        print(f"\n{failure.where}\n  {failure.error}", file=sys.stderr)
    if failures:
        raise CourseError(
            f"{len(failures)} notebooks failed and were not written; mend the cells named above and run the command again"
        )
    return 0
