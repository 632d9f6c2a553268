"""What a second process brings, and what it costs: `python benchmarks/distributed.py` (about three minutes).

One table per question, all from one run, with medians of steps that take turns:

- samples per second of `world` 1 and 2, one thread each, for models and batches from too small to large enough;
- the share of a step that is spent in all_reduce, the bytes that each process sends, and the bound 2 (n - 1) / n;
- what the checkpoints of `scripts/train_elastic.py` cost.

With `--device cuda` the processes use NCCL, one GPU each; on one GPU the world is 1, and what DDP itself costs is shown.
The efficiency is that of strong scaling: the same global batch, shared out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp_state
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

REPOSITORY = Path(__file__).resolve().parent.parent
SIZES = [(64, 256), (256, 256), (1024, 256), (1024, 1024), (4096, 1024), (8192, 1024)]  # (global batch, width)
QUICK = [(64, 64), (256, 64)]


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few steps: does it run?")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write all results to this file as well")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # the path that rank 0 writes its results to
    return parser.parse_args()


def make_model(width: int) -> nn.Sequential:
    """Return three linear layers of this width."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def wait(device: torch.device) -> None:
    """Return when everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_step(device: torch.device, batch_size: int, width: int, repeats: int) -> dict[str, float]:
    """Time, in turns, steps with and without averaging and the averaging alone; medians in seconds, on this rank."""
    world_size = dist.get_world_size()
    share = batch_size // world_size
    features, labels = torch.randn(share, width, device=device), torch.randint(10, (share,), device=device)
    model = make_model(width).to(device)
    replica = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gradients = torch.zeros(sum(p.numel() for p in model.parameters()), device=device)

    def step(network: nn.Module) -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(features), labels).backward()
        optimizer.step()

    work = {
        "step": lambda: step(replica),
        "alone": lambda: step(model),
        "all_reduce": lambda: dist.all_reduce(gradients),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    processor: list[float] = []
    for _ in range(repeats + 2):
        for name, call in work.items():
            dist.barrier()
            wait(device)
            started, busy = time.perf_counter(), time.thread_time()
            call()
            wait(device)
            times[name].append(time.perf_counter() - started)
            if name == "alone":
                processor.append(time.thread_time() - busy)
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}  # two steps to warm up
    return {**medians, "bytes": float(gradients.nbytes), "processor": statistics.median(processor[2:])}


def bytes_sent() -> int:
    """Return what this machine's loopback has carried so far, in bytes (Linux)."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def traffic(device: torch.device, width: int) -> float | None:
    """Return the bytes each process sends for one all_reduce, in sizes of the tensor; None where nobody counts them."""
    if device.type == "cuda" or not Path("/proc/net/dev").is_file():
        return None
    t = torch.zeros(width * width)
    dist.all_reduce(t)
    dist.barrier()
    before = bytes_sent()
    for _ in range(10):
        dist.all_reduce(t)
    dist.barrier()
    return (bytes_sent() - before) / 10 / dist.get_world_size() / t.nbytes


def seconds_per_checkpoint(device: torch.device, width: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of one checkpoint of `scripts/train_elastic.py`, and how many bytes it has."""
    specification = importlib.util.spec_from_file_location("train_elastic", REPOSITORY / "scripts" / "train_elastic.py")
    assert specification and specification.loader
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    model = make_model(width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(torch.randn(8, width, device=device)).sum().backward()
    optimizer.step()
    shared: list[str] = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(shared)
    folder, seconds = Path(shared[0]), []
    for step in range(1, repeats + 2):
        dist.barrier()
        started = time.perf_counter()
        weights, moments = dcp_state.get_state_dict(model, optimizer)
        mine = {str(dist.get_rank()): torch.get_rng_state()}
        program.save_checkpoint(folder, step, {"model": weights, "optimizer": moments, "ranks": mine}, {"recipe": {}})
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    size = sum(path.stat().st_size for path in (folder / f"step-{step:08d}").iterdir())
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    return {"seconds": statistics.median(seconds[1:]), "bytes": float(size)}


def worker(arguments: argparse.Namespace) -> None:
    """Measure as one of several processes; rank 0 writes what it has found."""
    torch.set_num_threads(1)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if arguments.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    found: dict[str, object] = {}
    for batch_size, width in QUICK if arguments.quick else SIZES:
        repeats = 3 if arguments.quick else max(7, 120_000 // (batch_size * (width // 256)))
        found[f"{batch_size} {width}"] = seconds_per_step(device, batch_size, width, min(repeats, 60))
    found["checkpoint"] = seconds_per_checkpoint(device, 64 if arguments.quick else 1024, 2 if arguments.quick else 5)
    found["sent"] = traffic(device, 256 if arguments.quick else 1024)
    if dist.get_rank() == 0:
        arguments.worker.write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def torchrun(world_size: int, program: Path, *options: str) -> float:
    """Run a program in several processes, one thread each; return its seconds."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    started = time.perf_counter()
    done = subprocess.run([*launcher, str(program), *options], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"distributed.py: {program.name} failed with {world_size} processes:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print one table per question."""
    arguments = read_arguments()
    if arguments.worker:
        worker(arguments)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("distributed.py: --device cuda, but torch finds no GPU: nothing was measured")
    worlds = [1, 2]
    if arguments.device == "cuda":
        worlds = [n for n in worlds if n <= torch.cuda.device_count()]
    results: dict[str, object] = {"device": arguments.device}
    rounds: dict[int, list[dict]] = {world_size: [] for world_size in worlds}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in range(1 if arguments.quick else 3):  # in turns, so that noise meets both
            for world_size in worlds:
                target = folder / "found.json"
                options = ["--device", arguments.device, "--worker", str(target)]
                torchrun(world_size, Path(__file__), *options, *(["--quick"] if arguments.quick else []))
                rounds[world_size].append(json.loads(target.read_text(encoding="utf-8")))

        def median(world_size: int, size: str, name: str) -> float:
            return statistics.median(found[size][name] for found in rounds[world_size])

        print("Strong scaling: the same global batch in one process and in two, one thread each")
        print(
            f"{'batch':>6} {'width':>6} {'samples/s, 1':>13} {'2':>9} {'speed-up':>9} {'efficiency':>11} "
            f"{'by processor time':>18} {'in all_reduce':>14}"
        )
        rows = []
        for batch_size, width in QUICK if arguments.quick else SIZES:
            size = f"{batch_size} {width}"
            row = {"batch": batch_size, "width": width, "one": batch_size / median(1, size, "alone")}
            if 2 in worlds:
                row["two"] = batch_size / median(2, size, "step")
                row["speed_up"] = row["two"] / row["one"]
                row["efficiency"] = row["speed_up"] / 2
                # Without the noise of a shared machine: seconds of a processor, for the arithmetic alone.
                row["by_processor"] = median(1, size, "processor") / (2 * median(2, size, "processor"))
                row["all_reduce_share"] = max(0.0, 1 - median(2, size, "alone") / median(2, size, "step"))
            else:
                row["ddp_share"] = max(0.0, 1 - median(1, size, "alone") / median(1, size, "step"))
            rows.append(row)
            if 2 in worlds:
                print(
                    f"{batch_size:6d} {width:6d} {row['one']:13,.0f} {row['two']:9,.0f} {row['speed_up']:9.2f} "
                    f"{row['efficiency']:11.0%} {row['by_processor']:18.0%} {row['all_reduce_share']:14.0%}"
                )
            else:
                print(
                    f"{batch_size:6d} {width:6d} {row['one']:13,.0f}   DDP itself costs {row['ddp_share']:.0%} of a step"
                )
        results["scaling"] = rows
        if 2 in worlds:
            large = f"{(QUICK if arguments.quick else SIZES)[-1][0]} {(QUICK if arguments.quick else SIZES)[-1][1]}"
            results["all_reduce"] = {"bytes": median(2, large, "bytes"), "seconds": median(2, large, "all_reduce")}
            print(
                f"\nall_reduce of {median(2, large, 'bytes') / 1e6:.1f} MB: {1e3 * median(2, large, 'all_reduce'):.2f} ms, "
                f"{median(2, large, 'bytes') / median(2, large, 'all_reduce') / 1e9:.2f} GB/s"
            )
            sent = rounds[2][0]["sent"]
            results["sent"] = sent
            if sent is None:
                print("bytes sent: nobody counts them here")
            else:
                print(
                    f"sent by each process: {sent:.3f} sizes of the tensor; the bound 2 (n - 1) / n is {2 * (2 - 1) / 2:.3f}"
                )
        batch_size, width = (QUICK if arguments.quick else SIZES)[-1]
        last = worlds[-1]
        seconds = statistics.median(found["checkpoint"]["seconds"] for found in rounds[last])
        steps = seconds / median(last, f"{batch_size} {width}", "step" if last > 1 else "alone")
        results["checkpoint"] = {"seconds": seconds, "steps": steps, "bytes": rounds[last][0]["checkpoint"]["bytes"]}
        print(
            f"\ncheckpoint of {rounds[last][0]['checkpoint']['bytes'] / 1e6:.1f} MB by {last} process(es): "
            f"{1e3 * seconds:.0f} ms, as long as {steps:.1f} steps of batch {batch_size}, width {width}: "
            f"{steps / (100 + steps):.1%} of the time with one every 100 steps"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
