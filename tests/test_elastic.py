"""`scripts/train_elastic.py`: whatever is killed, whenever, the run ends with the weights of one that nobody disturbed.

Real processes under torchrun, killed with SIGKILL (nothing can be tidied up then) from outside.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from conftest import REPOSITORY, made_once

SCRIPT = REPOSITORY / "scripts" / "train_elastic.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
pytestmark = pytest.mark.slow

# Every source of randomness and of state is in use: dropout, momentum, a falling learning rate, epochs of 39 steps of
# which no checkpoint marks the end, and a batch that is added up in two parts.
RECIPE = ["--dataset", "synthetic", "--batch-size", "128", "--accumulate", "2", "--checkpoint-every", "10"]
EPOCHS = 12


def command(folder: Path, *options: str, world_size: int = 2, restarts: int = 0) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    files = ["--run-dir", str(folder / "run"), "--save", str(folder / "end.pt"), "--metrics", str(folder / "log.json")]
    return [*launcher, f"--max-restarts={restarts}", str(SCRIPT), *RECIPE, *files, *options]


def train(folder: Path, *options: str, world_size: int = 2) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    arguments = command(folder, *options, world_size=world_size)
    return subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def program() -> ModuleType:
    """Return the script as a module, to call its functions."""
    specification = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def same_bits(one: Path, other: Path) -> bool:
    a, b = (torch.load(path / "end.pt", weights_only=True) for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def told(folder: Path) -> list[dict]:
    """Return what was said of each epoch, without the seconds it took."""
    lines = (folder / "log.json").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "run").glob("step-????????")), default=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        done = train(folder, "--epochs", str(EPOCHS))
        assert done.returncode == 0, done.stderr

    folder = made_once(tmp_path_factory, "undisturbed", make)
    assert [record["epoch"] for record in told(folder)] == list(range(1, EPOCHS + 1))
    return folder


@dataclass
class Run:
    """A run under torchrun that is being disturbed."""

    folder: Path
    restarts: int
    agents: int = 0

    def __enter__(self) -> Run:
        self.folder.mkdir(exist_ok=True)
        self.start()
        return self

    def start(self) -> None:
        self.agents += 1
        log = self.folder / f"output-{self.agents}.txt"
        arguments = command(self.folder, "--epochs", str(EPOCHS), restarts=self.restarts)
        with log.open("w") as file:
            self.agent = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)

    def __exit__(self, *_: object) -> None:
        for process in [*psutil.Process(self.agent.pid).children(recursive=True)] if self.agent.poll() is None else []:
            process.kill()
        self.agent.kill()
        self.agent.wait()

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("output-*.txt")))

    def worker(self, rank: int) -> psutil.Process:
        """Return the living process of this rank, waiting for it."""
        return wait_for(lambda: next((p for p in self.workers() if p.environ().get("RANK") == str(rank)), None), self)

    def workers(self) -> list[psutil.Process]:
        try:
            found = psutil.Process(self.agent.pid).children()
            return [p for p in found if SCRIPT.name in " ".join(p.cmdline()) and p.status() != psutil.STATUS_ZOMBIE]
        except psutil.Error:
            return []

    def gets_on(self, by: int = 10) -> None:
        """Wait until the run has a checkpoint that is `by` steps newer."""
        start = newest_step(self.folder)
        wait_for(lambda: newest_step(self.folder) >= start + by or self.agent.poll() is not None, self)


def wait_for(condition: Callable, run: Run, seconds: float = 90):
    """Return what the condition returns once it is true; psutil's errors mean that a process ended meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except psutil.Error:
            pass
        time.sleep(0.002)
    raise AssertionError(f"nothing happened for {seconds} s:\n{run.said()[-3000:]}")


def kill_worker(run: Run, rank: int, chance: random.Random) -> None:
    """Kill a process anywhere in a step, or while it computes the metrics of an epoch."""
    process = run.worker(rank)
    time.sleep(chance.uniform(0, 0.3))
    process.kill()


def kill_in_the_beginning(run: Run, rank: int, chance: random.Random) -> None:
    """Kill a process while it imports, meets the others or loads a checkpoint (the last kill was a moment ago)."""
    process = run.worker(rank)
    time.sleep(max(0, process.create_time() + chance.uniform(0.5, 3.5) - time.time()))
    process.kill()


def kill_in_a_checkpoint(run: Run, rank: int, chance: random.Random) -> None:
    """Kill a process while a checkpoint is being written."""
    process = run.worker(rank)
    wait_for(lambda: list((run.folder / "run").glob("step-*.partial")) or not process.is_running(), run)
    time.sleep(chance.uniform(0, 0.01))
    process.kill()


def kill_in_all_reduce(run: Run, rank: int, chance: random.Random) -> None:
    """Kill a process that waits in all_reduce for another, which is kept from coming there."""
    waiting, other = run.worker(rank), run.worker(1 - rank)
    other.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    waiting.kill()
    other.send_signal(signal.SIGCONT)


def kill_agent(run: Run, rank: int, chance: random.Random) -> None:
    """Kill torchrun itself, and start it again as a person or a scheduler would."""
    workers = run.workers()
    time.sleep(chance.uniform(0, 0.3))
    run.agent.kill()
    run.agent.wait()
    run.start()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "processes went on without their agent"


KILLS = [kill_worker, kill_in_a_checkpoint, kill_in_all_reduce, kill_in_the_beginning, kill_agent]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_is_killed_the_run_ends_bit_for_bit_as_undisturbed(tmp_path: Path, undisturbed: Path, seed: int):
    chance = random.Random(seed)
    plan = [(kill, rank) for kill in KILLS for rank in (0, 1)]
    chance.shuffle(plan)
    done: list[str] = []
    with Run(tmp_path / "run", restarts=20) as run:
        for kill, rank in plan:
            if kill is not kill_in_the_beginning:
                run.gets_on()
            if run.agent.poll() is not None:
                break
            while f"{kill.__name__}({rank})" not in done:
                with contextlib.suppress(psutil.NoSuchProcess):  # it had ended on its own, because the other was killed
                    kill(run, rank, chance)
                    done.append(f"{kill.__name__}({rank})")
        assert run.agent.wait(timeout=120) == 0, run.said()
    assert len(done) == len(plan), f"it ended after {done}"
    assert same_bits(undisturbed, run.folder), done
    assert told(run.folder) == told(undisturbed)
    assert "is not used" not in run.said()  # no checkpoint was ever found damaged
    assert not list((run.folder / "run").glob("*.partial"))


@pytest.fixture(scope="module")
def stopped_half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose processes were all killed after some checkpoints."""

    def make(folder: Path) -> None:
        with Run(folder, restarts=0) as run:
            wait_for(lambda: newest_step(folder) >= 60, run)
            workers = run.workers()
            run.agent.kill()
            psutil.wait_procs(workers, timeout=10)

    return made_once(tmp_path_factory, "stopped-half-way", make)


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)


def swap_a_bit(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "__1_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "__1_0.distcp").write_bytes(content)


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / ".metadata").unlink()


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def put_a_strange_manifest_there(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"files": ["a"], "recipe": {}}')
    (checkpoint / "folder").mkdir()


def put_something_else_there(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    torch.save({"epoch": 3}, checkpoint / "snapshot.pt")
    (checkpoint / "manifest.json").write_text('["a manifest of another program"]')


DAMAGES = [truncate, swap_a_bit, lose_a_file, lose_the_manifest, put_a_strange_manifest_there, put_something_else_there]


def test_a_damaged_or_foreign_checkpoint_is_refused_and_the_one_before_it_used(
    tmp_path: Path, undisturbed: Path, stopped_half_way: Path
):
    half_way = shutil.copytree(stopped_half_way, tmp_path / "half")
    newest, before = newest_step(half_way), newest_step(half_way) - 10
    truncate(half_way / "run" / f"step-{newest:08d}")
    done = train(half_way, "--epochs", str(EPOCHS))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"step-{newest:08d}` is not used: `__0_0.distcp` is not what its manifest says", done.stdout)
    assert f"goes on from step {before} of" in done.stdout
    assert (half_way / "run" / f"step-{newest:08d}.refused").is_dir()  # kept, to be looked at
    assert same_bits(undisturbed, half_way)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_seen(tmp_path: Path, undisturbed: Path, damage: Callable, capsys: pytest.CaptureFixture):
    newest_checkpoint = program().newest_checkpoint
    run = tmp_path / "run"
    shutil.copytree(undisturbed / "run", run)
    before, newest = sorted(run.glob("step-????????"))
    assert newest_checkpoint(run) == newest and capsys.readouterr().out == ""
    damage(newest)
    assert newest_checkpoint(run) == before
    line = capsys.readouterr().out
    assert line.startswith(f"checkpoint `{newest}` is not used: ") and line.count("\n") == 1
    damage(before)
    for _ in range(2):  # a restart must not take it for the beginning
        with pytest.raises(SystemExit, match="can be used; start again with another --run-dir"):
            newest_checkpoint(run)


def test_a_finished_run_is_left_alone(tmp_path: Path, undisturbed: Path):
    shutil.copytree(undisturbed, tmp_path / "again")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*") if path.is_file()}
    done = train(tmp_path / "again", "--epochs", str(EPOCHS))
    assert done.returncode == 0, done.stderr
    assert "this run is finished: nothing to do" in done.stdout and "loss" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert {path for path in (tmp_path / "again").rglob("*") if path.is_file()} == set(files)


def test_what_a_kill_after_the_last_checkpoint_left_undone_is_made_up_for(tmp_path: Path, undisturbed: Path):
    folder = shutil.copytree(undisturbed, tmp_path / "killed")
    (folder / "end.pt").write_bytes(b"the weights of an older run")
    lines = (folder / "log.json").read_text().splitlines(keepends=True)
    (folder / "log.json").write_text("".join(lines[:-1]))
    done = train(folder, "--epochs", str(EPOCHS))
    assert done.returncode == 0, done.stderr
    assert same_bits(undisturbed, folder) and told(folder) == told(undisturbed)


def test_a_folder_of_another_run_is_refused(tmp_path: Path, undisturbed: Path):
    shutil.copytree(undisturbed, tmp_path / "other")
    done = train(tmp_path / "other", "--epochs", str(EPOCHS), "--lr", "0.2")
    assert done.returncode == 1
    assert "holds another run: lr 0.1, now 0.2; give this one another --run-dir" in done.stderr
    assert f'{SCRIPT.name}", line' not in done.stderr  # one line of ours, no traceback


def test_two_runs_in_one_folder_keep_out_of_each_others_way(tmp_path: Path):
    lock = program().lock
    lock(tmp_path)
    with pytest.raises(SystemExit, match="another run is at work in .*; give this one another --run-dir"):
        lock(tmp_path, patience=0.5)


def test_another_number_of_processes_goes_on_and_says_what_is_no_longer_the_same(
    tmp_path: Path, undisturbed: Path, stopped_half_way: Path
):
    half_way = shutil.copytree(stopped_half_way, tmp_path / "half")
    step = newest_step(half_way)
    done = train(half_way, "--epochs", str(EPOCHS), world_size=1)
    assert done.returncode == 0, done.stderr
    assert f"goes on from step {step} of 468" in done.stdout
    assert (
        "processes 2, now 1: the same batches in the same order, but other roundings and other dropout" in done.stdout
    )
    assert not same_bits(undisturbed, half_way)
    ours, theirs = told(half_way), told(undisturbed)
    assert ours[0] == theirs[0] and len(ours) == EPOCHS  # what came before the change is as it was
    assert abs(ours[-1]["correct"] - theirs[-1]["correct"]) < 60


@pytest.mark.parametrize(("world_size", "dtype"), [(3, "float32"), (2, "float16")])
def test_other_shapes_of_a_run_go_on_bit_for_bit(tmp_path: Path, world_size: int, dtype: str):
    options = ["--epochs", "3", "--batch-size", "96", "--dtype", dtype, "--model", "cnn", "--limit", "1000"]
    whole = train(tmp_path / "whole", *options, world_size=world_size)
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(max((tmp_path / "part" / "run").glob("step-????????")))  # as if it had never come to the last one
    (tmp_path / "part" / "end.pt").unlink()
    rest = train(tmp_path / "part", *options, world_size=world_size)
    assert rest.returncode == 0, rest.stderr
    assert "goes on from step 20 of 30" in rest.stdout
    assert same_bits(tmp_path / "whole", tmp_path / "part")


def test_two_machines_lose_one_and_go_on_when_it_is_back(tmp_path: Path, undisturbed: Path, machines: list[list[str]]):
    """Two torchruns meet over a network; one of them and its process vanish, and come back after two seconds."""
    folder = tmp_path / "run"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"HOST": "127.0.0.1", "PORT": port, "TORCHRUN": f"{sys.executable} -m torch.distributed.run"}
    if machines[0]:
        meeting |= {"HOST": "10.77.0.1", "INTERFACE": "eth0"}
    program = command(folder, "--epochs", str(EPOCHS))[-len(RECIPE) - 9 :]
    assert program[0] == str(SCRIPT)

    def start(machine: int, name: str) -> subprocess.Popen:
        launcher = [*machines[machine], str(REPOSITORY / "scripts" / "launch" / "two_nodes.sh")]
        with (folder / f"{name}.txt").open("w") as log:
            return subprocess.Popen(
                [*launcher, *program], env={**ENVIRONMENT, **meeting}, stdout=log, stderr=subprocess.STDOUT
            )

    def said() -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.txt")))

    stays, leaves, back = start(0, "stays"), None, None
    try:
        if not machines[0]:  # at one address whoever comes first keeps the store, and the one that stays has to
            wait_until_somebody_listens(int(port))
        leaves = start(1, "leaves")
        deadline = time.monotonic() + 120
        while newest_step(folder) < 60:
            assert time.monotonic() < deadline and stays.poll() is None and leaves.poll() is None, said()
            time.sleep(0.01)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(leaves.pid).children():
                process.kill()
        leaves.kill()
        time.sleep(2)
        back = start(1, "back")
        assert stays.wait(timeout=180) == 0, said()
        assert back.wait(timeout=60) == 0, said()
    finally:
        for process in [each for each in (stays, leaves, back) if each and each.poll() is None]:
            process.kill()
    assert "goes on from step" in said()
    assert same_bits(undisturbed, folder)
    assert told(folder) == told(undisturbed)


def wait_until_somebody_listens(port: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens at port {port} after {seconds} s")


@pytest.fixture(params=["processes", "network namespaces"])
def machines(request: pytest.FixtureRequest) -> Iterator[list[list[str]]]:
    """Give, for each of two machines, the words before a command that make it run there."""
    if request.param == "processes":  # two on one machine, at 127.0.0.1
        yield [[], []]
        return
    names = [f"playground-{os.getpid()}-{i}" for i in (1, 2)]

    def ip(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *words], capture_output=True, text=True)

    if shutil.which("ip") is None:
        pytest.skip("there is no program `ip`, which makes network namespaces (Debian package iproute2)")
    try:
        made = [ip("netns", "add", name) for name in names]
        if any(done.returncode for done in made):
            pytest.skip(f"network namespaces cannot be made here: {made[0].stderr.strip()}")
        cable = ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        if cable.returncode:
            pytest.skip(f"network namespaces cannot be connected here: {cable.stderr.strip()}")
        for i, name in enumerate(names, 1):
            for words in (["addr", "add", f"10.77.0.{i}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                done = ip("-n", name, *words)
                assert done.returncode == 0, done.stderr
            ip("-n", name, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            ip("netns", "del", name)
