"""What only a GPU can show; skipped and counted elsewhere. `python -m course test --device cuda` runs these."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, Book

pytestmark = pytest.mark.gpu


def test_an_output_recorded_on_this_gpu_names_it_and_agrees_with_the_next_run(book: Book):
    import torch

    book.edit(
        "chapters/tiny.md",
        'raise RuntimeError("only runs where there is a GPU")',
        "import torch\nprint(torch.ones(2, device='cuda') / 4)",
    )
    assert book.run("execute").returncode == 0
    done = book.run("execute", "--device", "cuda")
    assert done.returncode == 0, done.stderr
    cell = next(
        c for c in json.loads(book.read("notebooks/tiny.ipynb"))["cells"] if "gpu" in c["metadata"].get("tags", [])
    )
    assert cell["metadata"]["recorded"]["device"] == torch.cuda.get_device_name()
    assert cell["outputs"][0]["text"] == ["tensor([0.2500, 0.2500], device='cuda:0')\n"]
    done = book.run("compare", "--device", "cuda")
    assert done.returncode == 0, done.stdout


def test_the_checks_of_all_exercises_hold_on_a_machine_with_a_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "course", "check-exercises"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_benchmark_of_training_runs_on_the_gpu():
    done = subprocess.run(
        [sys.executable, "benchmarks/training.py", "--quick", "--seeds", "1", "--device", "cuda"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "of the measured matmul peak" in done.stdout
