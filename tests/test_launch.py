"""The launchers in `scripts/launch/`: read by a linter, and started as their users would.

What needs a cluster is not there: SLURM's commands are played by two small programs, and the manifest is read, not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

LAUNCHERS = REPOSITORY / "scripts" / "launch"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"},
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHRUN": f"{sys.executable} -m torch.distributed.run",
}
SHORT = ["--dataset", "synthetic", "--limit", "512", "--limit-validation", "100"]
SHELL = sorted(path for path in LAUNCHERS.iterdir() if path.suffix in (".sh", ".sbatch"))


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_launcher_is_sound(path: Path):
    done = launch(str(Path(sys.executable).parent / "shellcheck"), str(path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_launcher_without_a_program_says_what_to_give_it(path: Path):
    done = launch("bash", str(path))
    assert done.returncode == 2
    assert done.stderr.startswith("which program") and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_one_machine_trains_in_as_many_processes_as_asked_for(tmp_path: Path):
    program = ["scripts/train_elastic.py", *SHORT, "--run-dir", str(tmp_path / "run")]
    done = launch(str(LAUNCHERS / "one_machine.sh"), *program)
    assert done.returncode == 0, done.stderr
    assert "epoch 1" in done.stdout
    again = launch(str(LAUNCHERS / "one_machine.sh"), *program, PROCESSES="1")
    assert again.returncode == 0, again.stderr
    assert "processes 2, now 1" in again.stdout and "nothing to do" in again.stdout


@pytest.mark.slow
def test_a_job_of_slurm_meets_at_its_first_machine(tmp_path: Path):
    programs = {"scontrol": 'echo "127.0.0.1"; echo "node-b"', "srun": 'shift; exec "$@"'}
    for name, content in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "123457", "SLURM_JOB_NUM_NODES": "1"}
    place = {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_CPUS_PER_TASK": "1", "PROCESSES": "2"}
    program = ["scripts/train_ddp.py", *SHORT]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = launch("bash", str(LAUNCHERS / "slurm.sbatch"), *program, **job, **place, PATH=path)
    assert done.returncode == 0, done.stderr
    assert "epoch 1" in done.stdout


def test_the_manifest_describes_a_job_that_its_runtime_can_run():
    runtime, job = yaml.safe_load_all((LAUNCHERS / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    assert {each["apiVersion"] for each in (runtime, job)} == {"trainer.kubeflow.org/v1alpha1"}
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (pods,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # Trainer changes the container with this name, in the job with this label, and no other.
    assert pods["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = pods["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == pods["name"] == "node"
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"] > 0

    launcher, program = job["spec"]["trainer"]["command"]
    assert launcher == "torchrun" and (REPOSITORY / program).is_file()
    help_text = launch(sys.executable, program, "--help").stdout
    given = dict(option.split("=") for option in job["spec"]["trainer"]["args"])
    assert all(option in help_text for option in given)
    processes = (
        runtime["spec"]["mlPolicy"]["numNodes"] * job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    )
    assert int(given["--batch-size"]) % processes == 0
