"""The programs in `scripts/`: several processes take the same steps as one, and say so when they cannot.

Real processes, started by torchrun, talking through gloo on this machine; none of it needs a GPU.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_single(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "train_single.py"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def torchrun(world_size: int, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    command = [*launcher, str(program), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)


def run_ddp(world_size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return torchrun(world_size, SCRIPTS / "train_ddp.py", *arguments)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def largest_difference(one: Path, other: Path) -> float:
    a, b = torch.load(one, weights_only=True), torch.load(other, weights_only=True)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "options", "tolerance"),
    [
        (2, ["--dtype", "float64", "--model", "mlp"], 1e-12),
        (2, ["--dtype", "float64", "--model", "cnn", "--limit", "1100"], 1e-12),
        (3, ["--dtype", "float64", "--batch-size", "120", "--limit", "2003"], 1e-12),  # sizes that do not divide
        # In float32 only the beginning agrees: rounding differs, and training amplifies it.
        (2, ["--dtype", "float32", "--limit", str(30 * 64), "--batch-size", "64"], 1e-6),
    ],
)
def test_several_processes_end_with_the_weights_of_one(
    tmp_path: Path, world_size: int, options: list, tolerance: float
):
    common = ["--dataset", "synthetic", *options]
    single = run_single(*common, "--save", str(tmp_path / "single.pt"), "--metrics", str(tmp_path / "single.json"))
    assert single.returncode == 0, single.stderr
    outcomes = [json.loads((tmp_path / "single.json").read_text())]
    for accumulate in (1, 2):
        name = f"ddp-{accumulate}"
        extra = ["--save", str(tmp_path / f"{name}.pt"), "--metrics", str(tmp_path / f"{name}.json")]
        done = run_ddp(world_size, *common, "--accumulate", str(accumulate), *extra)
        assert done.returncode == 0, done.stderr
        assert largest_difference(tmp_path / "single.pt", tmp_path / f"{name}.pt") <= tolerance
        outcomes.append(json.loads((tmp_path / f"{name}.json").read_text()))
    for each in outcomes:
        assert (each["correct"], each["total"]) == (outcomes[0]["correct"], 1000)
        assert abs(each["loss"] - outcomes[0]["loss"]) < 1e-6


@pytest.mark.slow
def test_one_process_speaks_for_all_of_them():
    done = run_ddp(2, "--dataset", "synthetic", "--epochs", "3", "--limit", "512")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^epoch (\d)", done.stdout, re.MULTILINE) == ["1", "2", "3"]


def count_in_every_size(rank: int, world_size: int, port: str) -> None:
    """Count what a process alone counts and what all of them count together, for sizes 1 to 17."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.path.insert(0, str(SCRIPTS))
    from train_ddp import count_correct, count_everywhere

    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    for size in range(1, 18):
        features, labels = torch.randn(size, 1, 2, 2), torch.randint(3, (size,))
        assert count_everywhere(model, features, labels) == count_correct(model, features, labels), size
        assert count_everywhere(model, features, labels)[1] == size
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_picture_is_counted_twice_or_left_out(world_size: int):
    # Processes that a server forks, which has imported torch once for all of them.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    world = (world_size, free_port())
    processes = [context.Process(target=count_in_every_size, args=(rank, *world)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()  # if it hangs, it must not stay
    assert [process.exitcode for process in processes] == [0] * world_size


def test_started_without_torchrun_it_says_how_to_start_it():
    command = [sys.executable, str(SCRIPTS / "train_ddp.py"), "--dataset", "synthetic"]
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "torchrun --standalone --nproc-per-node 2 scripts/train_ddp.py" in done.stderr


def by_hand(*arguments: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Start one process per list of arguments, as torchrun would, and return how they ended."""
    port = free_port()
    world = {"WORLD_SIZE": str(len(arguments)), "LOCAL_WORLD_SIZE": str(len(arguments))}
    processes = []
    for rank, given in enumerate(arguments):
        who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(SCRIPTS / "train_ddp.py"), "--dataset", "synthetic", *given]
        environment = {**ENVIRONMENT, **world, **who}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return ended


def test_a_batch_that_cannot_be_shared_out_is_refused_once():
    first, second = by_hand(["--batch-size", "255"], ["--batch-size", "255"])
    assert (first.returncode, second.returncode) == (1, 1)
    assert "--batch-size 255 cannot be shared out evenly: make it a multiple of 2 processes" in first.stderr
    assert second.stderr == ""


@pytest.mark.slow
def test_processes_with_different_data_stop_at_once():
    first, second = by_hand(["--limit", "512"], ["--limit", "511"])
    assert (first.returncode, second.returncode) == (1, 1)
    for done in (first, second):
        assert "ranks [1] have other data than rank 0; give all of them the same files" in done.stderr
        assert "epoch" not in done.stdout and "Traceback" not in done.stderr


def test_a_missing_data_set_gets_one_clear_line(tmp_path: Path):
    done = run_single("--dataset", "mnist", "--data", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "python -m course data" in done.stderr


def test_too_few_pictures_for_one_batch_get_one_clear_line():
    done = run_single("--dataset", "synthetic", "--limit", "100")
    assert done.returncode == 1
    assert done.stderr == "100 pictures do not fill one batch of 256 (--batch-size)\n"


@pytest.mark.slow
def test_the_whole_of_mnist_is_learned(tmp_path: Path):
    done = run_ddp(2, "--dataset", "mnist", "--data", str(REPOSITORY / "data"), "--metrics", str(tmp_path / "log.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "log.json").read_text())
    assert record["total"] == 10_000 and record["correct"] > 9_300


def unmarked(before: Path, after: Path) -> list[str]:
    """Return the lines of code of `after` that are not in `before` and do not say `# NEW`.

    A comment `# NEW: ...` stands for all lines up to the next blank one, and one above a function for that function.
    """
    text = after.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    covered: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            covered |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.FunctionDef) and lines[node.lineno - 2 - len(node.decorator_list)].strip().startswith(
            "# NEW"
        ):
            covered |= set(range(node.lineno, node.end_lineno + 1))
        whole = isinstance(node, ast.Assign | ast.Expr) and lines[node.lineno - 1 : node.end_lineno]
        if whole and any("# NEW" in line for line in whole):
            covered |= set(range(node.lineno, node.end_lineno + 1))
    for number, line in enumerate(lines, 1):
        if line.strip().startswith("# NEW:"):
            rest = lines[number:]
            covered |= set(
                range(number, number + next((i for i, each in enumerate(rest) if not each.strip()), len(rest)) + 1)
            )
    old = {re.sub(r"  # NEW\b.*", "", line).strip() for line in before.read_text(encoding="utf-8").splitlines()}
    found = []
    for number, line in enumerate(lines, 1):
        code = re.sub(r"  # .*", "", line).strip()
        is_known = line.strip() in old or code in old
        if code and not code.startswith("#") and not is_known and "# NEW" not in line and number not in covered:
            found.append(f"{after.name}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize(
    ("before", "after"), [("single", "ddp"), ("ddp", "elastic"), ("elastic", "fsdp")], ids=["ddp", "elastic", "fsdp"]
)
def test_a_program_differs_from_the_one_before_by_lines_that_say_so(before: str, after: str):
    assert unmarked(SCRIPTS / f"train_{before}.py", SCRIPTS / f"train_{after}.py") == []


@pytest.mark.parametrize("name", ["single", "ddp", "elastic", "fsdp"])
def test_a_program_says_what_its_options_are(name: str):
    done = subprocess.run([sys.executable, str(SCRIPTS / f"train_{name}.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "--batch-size" in done.stdout and "--dataset" in done.stdout


@pytest.mark.slow
def test_weights_that_are_shared_out_end_as_weights_that_everybody_has(tmp_path: Path):
    common = ["--dataset", "synthetic", "--dtype", "float64", "--model", "cnn", "--limit", "1100", "--epochs", "2"]
    # No dropout, so that any number of processes can do the same.
    common += ["--limit-validation", "501", "--dropout", "0", "--accumulate", "2"]
    said = {}
    for name, world_size in [("elastic", 2), ("fsdp", 2), ("fsdp", 1), ("fsdp", 3)]:
        folder = tmp_path / f"{name}-{world_size}"
        folder.mkdir()
        files = ["--run-dir", str(folder / "run"), "--save", str(folder / "end.pt")]
        options = [*common, "--batch-size", "120", *files]
        done = torchrun(world_size, SCRIPTS / f"train_{name}.py", *options)
        assert done.returncode == 0, done.stderr
        said[folder.name] = done.stdout
    whole = tmp_path / "elastic-2" / "end.pt"
    for name in ("fsdp-1", "fsdp-2", "fsdp-3"):
        assert largest_difference(whole, tmp_path / name / "end.pt") <= 1e-12
        assert re.findall(r"correct \d+ of 501", said[name]) == re.findall(r"correct \d+ of 501", said["elastic-2"])
    found = re.findall(r"(\w+): +([\d.]+) MB in this process, +([\d.]+) MB with DDP", said["fsdp-2"])
    assert [name for name, _, _ in found] == ["parameters", "gradients", "momentum"]
    assert all(abs(float(part) / float(everything) - 0.5) < 0.02 for _, part, everything in found)


@pytest.mark.slow
def test_a_checkpoint_of_shared_out_weights_is_read_by_another_number_of_processes(tmp_path: Path):
    files = ["--run-dir", str(tmp_path / "run"), "--save", str(tmp_path / "end.pt"), "--checkpoint-every", "20"]
    common = ["--dataset", "synthetic", "--limit", "4800", "--batch-size", "120", *files]
    first = torchrun(2, SCRIPTS / "train_fsdp.py", *common)
    assert first.returncode == 0, first.stderr
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run" / "step-00000040").glob("*.distcp")}
    assert len(sizes) == 2 and max(sizes.values()) < 1.3 * min(sizes.values())  # each has written its part
    whole = (tmp_path / "end.pt").read_bytes()
    shutil.rmtree(tmp_path / "run" / "step-00000040")
    same = torchrun(2, SCRIPTS / "train_fsdp.py", *common)
    assert "goes on from step 20 of 40" in same.stdout and (tmp_path / "end.pt").read_bytes() == whole
    shutil.rmtree(tmp_path / "run" / "step-00000040")
    other = torchrun(3, SCRIPTS / "train_fsdp.py", *common)
    assert other.returncode == 0, other.stderr
    assert "processes 2, now 3" in other.stdout and "epoch 1" in other.stdout


@pytest.mark.slow
def test_processes_with_unequal_shares_to_judge_gather_weights_equally_often(tmp_path: Path):
    """Of 2001 pictures one process has 1001, in two passes, the other 1000, in one: it would leave the first waiting."""
    data = ["--dataset", "mnist", "--data", str(REPOSITORY / "data"), "--limit", "512", "--limit-validation", "2001"]
    done = torchrun(2, SCRIPTS / "train_fsdp.py", *data, "--run-dir", str(tmp_path / "run"), "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert "of 2001" in done.stdout
