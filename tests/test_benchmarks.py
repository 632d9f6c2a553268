"""The benchmark of training runs to its end on few pictures; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/training.py", *arguments]
    # One thread: tests run side by side, and threads that wait for each other's cores make them several times slower.
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_benchmark_of_training_shows_every_recipe_with_the_accuracy_of_every_seed(tmp_path: Path):
    done = benchmark("--quick", "--seeds", "2", "--device", "cpu", "--json", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    races = {**results["cpu"], **{name: rows for name, rows in results["gpu"].items() if "%" in name}}
    assert len(races) == 5
    for rows in races.values():
        for row in rows:
            assert row["seconds"] > 0 and len(row["accuracies"]) == 2
            assert all(0.05 < accuracy <= 1 for accuracy in row["accuracies"]), row
            assert row["recipe"] in done.stdout
    assert "What eats the time" in done.stdout and "of the measured matmul peak" in done.stdout


def test_the_benchmark_of_training_refuses_a_gpu_that_is_not_there():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = benchmark("--device", "cuda")
    assert done.returncode == 1
    assert done.stderr == "training.py: --device cuda, but torch finds no GPU: nothing was measured\n"


def test_the_hand_written_step_is_that_of_autograd_and_sgd():
    import torch

    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import recipes
    finally:
        sys.path.pop(0)
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (512, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (512,))
    images = recipes.Images("MNIST", None, pixels, labels, pixels, labels)
    options = {"images": images, "seed": 3, "batch": 64, "steps": 12, "peak": 0.05, "half": False}
    ours, theirs = next(recipes.by_hand(**options)), next(recipes.in_memory(**options))
    assert (ours(pixels) == theirs(pixels)).float().mean() > 0.99
    assert images.accuracy(ours) > 0.15  # twelve steps learn some of it by heart; one in ten would be chance


@pytest.mark.slow
def test_the_benchmark_of_many_processes_answers_every_question(tmp_path: Path):
    command = [sys.executable, "benchmarks/distributed.py", "--quick", "--json", str(tmp_path / "results.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert all(row["one"] > 0 and row["two"] > 0 and row["efficiency"] > 0 for row in results["scaling"])
    assert results["checkpoint"]["bytes"] > 10_000 and results["checkpoint"]["steps"] > 0
    for words in ("Strong scaling", "all_reduce of", "sent by each process", "with one every 100 steps"):
        assert words in done.stdout
    if results["sent"] is not None:  # the ring's 2 (n - 1) / n = 1, and what the messages are wrapped in
        assert 0.95 < results["sent"] < 1.5
