"""What a GPU printed: outputs of the cells tagged `gpu`, recorded on a real one and kept until their code changes.

A notebook is executed on a CPU; its cells that need a GPU are left out there. `python -m course execute --device cuda`
fills them in on a machine that has one, and leaves the other outputs as they are. A recorded cell carries the GPU's
name, torch's version, the date, and the fingerprint of the code that it depends on.
"""

from __future__ import annotations

import hashlib
import json

from nbformat import NotebookNode

from course import datasets
from course.errors import CourseError
from course.sources import Source


def require_gpu() -> None:
    """Refuse to go on where torch finds no GPU, so that nothing passes because it did not run.

    Raises:
        CourseError: there is no GPU that torch can use.
    """
    import torch

    if not torch.cuda.is_available():
        raise CourseError("--device cuda, but torch finds no GPU: nothing was executed or compared")


def is_gpu(cell: NotebookNode) -> bool:
    """Say whether a cell needs a GPU."""
    return cell.cell_type == "code" and "gpu" in cell.metadata.get("tags", [])


def gpu_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells of a notebook that need a GPU."""
    return [cell for cell in notebook.cells if is_gpu(cell)]


def fingerprints(source: Source, notebook: NotebookNode) -> list[str]:
    """Return, for each cell that needs a GPU, the fingerprint of its code, all code before it, and the data sets."""
    digest = hashlib.sha256(json.dumps({name: datasets.fingerprint(name) for name in source.datasets}).encode())
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
        if is_gpu(cell):
            found.append(digest.hexdigest())
    return found


def record(source: Source, notebook: NotebookNode, executed: NotebookNode, facts: dict[str, str]) -> None:
    """Put the outputs of `executed`, a run of the same notebook on a GPU, into the GPU cells of `notebook`.

    `facts`: what computed them, the keys `device`, `torch`, `date`.
    """
    for cell, done, key in zip(gpu_cells(notebook), gpu_cells(executed), fingerprints(source, notebook), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
        cell.metadata["recorded"] = {**facts, "key": key}


def carry_over(source: Source, old: NotebookNode | None, new: NotebookNode) -> None:
    """Give the GPU cells of `new` the outputs recorded in `old`, as far as they belong to the same code."""
    recorded = {
        cell.metadata["recorded"]["key"]: cell
        for cell in (gpu_cells(old) if old else [])
        if "recorded" in cell.metadata
    }
    for cell, key in zip(gpu_cells(new), fingerprints(source, new), strict=True):
        if key in recorded:
            cell.outputs, cell.execution_count = recorded[key].outputs, recorded[key].execution_count
            cell.metadata["recorded"] = recorded[key].metadata["recorded"]
