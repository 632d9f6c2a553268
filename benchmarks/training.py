"""How fast training gets, as ratios within one run: `python benchmarks/training.py` (half an hour; `--quick` tries it out).

All recipes of a race (`recipes.py`) run in turns, seed by seed, so that a busy moment of the machine hits them alike;
medians are compared, and the accuracy of every seed is shown. The time of a recipe is that of its training, from pixels
in memory to trained weights: loading files, imports and judging are not in it, and stand in a line of their own.

On a CPU always: time to 97.2 % (what the usual five-epoch loop reaches), to 98 %, and with convolutions to 99 % on MNIST.
With a GPU also: time to 99 % on MNIST and to 94 % on Fashion-MNIST, and what share of the measured matmul peak a
transformer's training step reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log; read when torch is imported

import recipes
import torch
from recipes import Images, Predict
from torch.profiler import ProfilerActivity, profile
from transformer import Size, training_step

DATA = Path(__file__).resolve().parent.parent / "data"
Train = Callable[[Images, int], Iterator[Predict]]


@dataclass
class Runner:
    """A recipe in a race, and what it did: for every seed the seconds and the accuracy at each time it was judged.

    `processor` holds the processor seconds of each whole training: on a busy machine they tell more than the clock.
    """

    title: str
    train: Train
    flops: float = 0.0  # of a whole training; 0: not counted
    half: bool = False  # multiplies in bfloat16
    seconds: list[list[float]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def run(self, images: Images, seed: int) -> None:
        """Train once and judge each time the recipe stops for it; the clock stands still meanwhile."""
        seconds, accuracy, spent, busy = [], [], 0.0, 0.0
        training = self.train(images, seed)
        while True:
            _wait(images.device)
            started, used = time.perf_counter(), time.process_time()
            predict = next(training, None)
            _wait(images.device)
            spent += time.perf_counter() - started
            busy += time.process_time() - used
            if predict is None:
                break
            seconds.append(spent)
            accuracy.append(images.accuracy(predict))
        self.seconds.append(seconds)
        self.accuracy.append(accuracy)
        self.processor.append(busy)

    def total(self) -> float:
        """Return the median seconds of a whole training."""
        return statistics.median(each[-1] for each in self.seconds)

    def until(self, mark: float) -> float | None:
        """Return the median seconds until a judgement of at least `mark`; None if not every seed got there."""
        first = [
            next((s for s, a in zip(seconds, accuracy, strict=True) if a >= mark), None)
            for seconds, accuracy in zip(self.seconds, self.accuracy, strict=True)
        ]
        return None if None in first else statistics.median(s for s in first if s is not None)


@dataclass
class Race:
    """Recipes that run for the same mark, the baseline first."""

    title: str
    mark: float
    runners: list[Runner]


def cpu_races(quick: bool) -> list[tuple[int, list[Race]]]:
    """Return (threads, races that share their baselines' runs) for the CPU; `quick`: a tenth of the rungs' steps."""
    loop = Runner("the usual loop, 5 epochs", recipes.teaching_loop, recipes.mlp_flops(5 * 60_000))

    def rung(title: str, batch: int, steps: int, peak: float, half: bool, pooled: bool | None = None) -> Runner:
        """Return a runner of `in_memory`, or of `by_hand` where `pooled` is given."""
        steps = steps // 10 if quick else steps
        train: Train = partial(recipes.in_memory, batch=batch, steps=steps, peak=peak, half=half)
        if pooled is not None:
            train = partial(recipes.by_hand, batch=batch, steps=steps, peak=peak, half=half, pooled=pooled)
        return Runner(title, train, recipes.mlp_flops(batch * steps, 144 if pooled else 784), half)

    to_972 = [
        loop,
        rung("in memory, schedule, 300 x 256", 256, 300, 0.2, half=False),
        rung("the same in bfloat16", 256, 300, 0.2, half=True),
        rung("backward by hand, 300 x 256", 256, 300, 0.2, half=False, pooled=False),
        rung("the same in bfloat16", 256, 300, 0.2, half=True, pooled=False),
        rung("by hand on 12 x 12 pixels, 350 x 192", 192, 350, 0.4, half=False, pooled=True),
        rung("the same in bfloat16", 192, 350, 0.4, half=True, pooled=True),
    ]
    to_98 = [
        loop,
        rung("in memory, schedule, 680 x 256", 256, 680, 0.2, half=False),
        rung("the same in bfloat16", 256, 680, 0.2, half=True),
        rung("by hand on 12 x 12 pixels, 400 x 512", 512, 400, 0.6, half=False, pooled=True),
        rung("the same in bfloat16", 512, 400, 0.6, half=True, pooled=True),
    ]
    to_99 = [
        Runner("PyTorch's examples/mnist, 4 epochs", partial(recipes.examples_mnist, epochs=4)),
        *(
            Runner(
                title,
                partial(recipes.small_cnn, batch=128, epochs=1, peak=0.15, half=half),
                recipes.small_cnn_flops(60_000),
                half,
            )
            for title, half in (("small CNN, one epoch of 128", False), ("the same in bfloat16", True))
        ),
    ]
    return [
        (1, [Race("MNIST, 97.2 %", 0.972, to_972), Race("MNIST, 98 %", 0.98, to_98)]),
        (torch.get_num_threads(), [Race("MNIST, 99 %, with convolutions", 0.99, to_99)]),
    ]


def gpu_races(quick: bool) -> dict[str, Race]:
    """Return data set -> race for a GPU."""
    digits = [
        Runner("PyTorch's examples/mnist, 4 epochs", partial(recipes.examples_mnist, epochs=4)),
        Runner("small CNN in bfloat16", partial(recipes.small_cnn, batch=128, epochs=1, peak=0.15, half=True)),
    ]
    clothes = [Runner("residual network", partial(recipes.residual_net, width=8 if quick else 64))]
    return {
        "MNIST": Race("MNIST, 99 %", 0.99, digits),
        "FashionMNIST": Race("Fashion-MNIST, 94 %", 0.94, clothes),
    }


def matmul_peak(device: str, half: bool) -> float:
    """Return the operations per second of the best of several square products, each the median of nine."""
    kind, best = torch.bfloat16 if half else torch.float32, 0.0
    for size in (512, 1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        seconds = []
        for _ in range(11):
            _wait(torch.device(device))
            started = time.perf_counter()
            a @ b
            _wait(torch.device(device))
            seconds.append(time.perf_counter() - started)
        best = max(best, 2 * size**3 / statistics.median(seconds[2:]))
    return best


def what_eats_the_time(runner: Runner, images: Images) -> list[tuple[float, str]]:
    """Return (share of the time, operation) of one training, the largest first; time between operations is Python's."""
    _train(runner, images)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        started = time.perf_counter()
        _train(runner, images)
        wall = time.perf_counter() - started
    operations = [(event.self_cpu_time_total / 1e6 / wall, event.key) for event in profiler.key_averages()]
    outside = 1 - sum(share for share, _ in operations)
    return sorted([*operations, (outside, "outside of any operation: Python, and the profiler itself")], reverse=True)[
        :9
    ]


def _train(runner: Runner, images: Images) -> None:
    for _ in runner.train(images, 0):
        pass


def start_up() -> float:
    """Return the seconds that a program spends before it can train: Python, imports, reading the files."""
    code = f"import recipes, pathlib; recipes.load(pathlib.Path({str(DATA)!r}), 'MNIST', 'cpu')"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
    return time.perf_counter() - started


def run(races: list[Race], images: Images, seeds: int) -> None:
    """Run every recipe of the races with every seed, in turns."""
    runners = list({id(runner): runner for race in races for runner in race.runners}.values())
    for seed in range(seeds):
        for runner in runners:
            runner.run(images, seed)
            print(
                f"  seed {seed}: {runner.title}: {runner.seconds[-1][-1]:.2f} s, {runner.accuracy[-1][-1]:.2%}",
                flush=True,
            )


def show(race: Race, peaks: dict[bool, float], extra: float) -> list[dict]:
    """Print a race's table and return its rows."""
    baseline = race.runners[0]
    first = baseline.until(race.mark)
    print(f"\n{race.title}")
    print(
        f"  {'recipe':40} {'median s':>9} {'x whole':>8} {'x busy':>8} {'x first':>8} {'x start':>8} {'x floor':>8} {'of peak':>8}  accuracy of every seed, %"
    )
    rows = []
    for runner in race.runners:
        seconds, last = runner.total(), [each[-1] for each in runner.accuracy]
        floor = runner.flops / peaks[runner.half] if runner.flops else None
        row = {
            "recipe": runner.title,
            "seconds": seconds,
            "whole": baseline.total() / seconds,
            "processor": statistics.median(baseline.processor) / statistics.median(runner.processor),
            "first": first / seconds if first else None,
            "start": (baseline.total() + extra) / (seconds + extra),
            "floor": seconds / floor if floor else None,
            "peak": floor / seconds if floor else None,
            "accuracies": last,
            "reached": min(last) >= race.mark,
        }
        rows.append(row)
        cells = "".join(
            f" {'-' if row[name] is None else format(row[name], form):>8}"
            for name, form in (
                ("whole", ".1f"),
                ("processor", ".1f"),
                ("first", ".1f"),
                ("start", ".1f"),
                ("floor", ".1f"),
                ("peak", ".0%"),
            )
        )
        judged = " ".join(f"{100 * each:.2f}" for each in last)
        print(f"  {runner.title:40} {seconds:9.2f}{cells}  {judged}{'' if row['reached'] else '  (below the mark)'}")
    return rows


LEGEND = """
x whole: times faster than the whole baseline · x busy: the same in processor seconds · x first: than the baseline until it is first judged to be at the mark (after an
epoch) · x start: with Python's start, imports and reading the files on both sides · x floor: times the floor, the recipe's
floating-point operations at the measured matmul peak of its number type · of peak: the share of that peak it reaches"""


def on_cpu(chosen: argparse.Namespace) -> dict:
    """Measure everything that needs no GPU."""
    results: dict = {}
    threads = torch.get_num_threads()
    images = recipes.load(DATA, "MNIST", "cpu", chosen.held_out, chosen.limit)
    extra = start_up()
    print(f"start of a program, imports and reading the files: {extra:.1f} s")
    for count, races in cpu_races(chosen.quick):
        torch.set_num_threads(count)
        peaks = {half: matmul_peak("cpu", half) for half in (False, True)}
        print(
            f"\n{count} threads: matmul peak {peaks[False] / 1e9:.0f} GFLOP/s in float32, {peaks[True] / 1e9:.0f} in bfloat16"
        )
        run(races, images, chosen.seeds)
        for race in races:
            results[race.title] = show(race, peaks, extra)
        if count == 1:
            final = min(races[0].runners[1:], key=Runner.total)
            print(f"\nWhat eats the time of `{final.title}` ({races[0].title}), from a profile:")
            for share, name in what_eats_the_time(final, images):
                print(f"  {share:6.1%}  {name}")
    torch.set_num_threads(threads)
    return results


def on_gpu(chosen: argparse.Namespace) -> dict:
    """Measure what needs a GPU (`chosen.device` says which; a CPU serves to try the code out)."""
    device = chosen.device
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peaks = {half: matmul_peak(device, half) for half in (False, True)}
    print(f"\n{name}: matmul peak {peaks[False] / 1e12:.1f} TFLOP/s in float32, {peaks[True] / 1e12:.1f} in bfloat16")
    results: dict = {"device": name}
    for data, race in gpu_races(chosen.quick).items():
        images = recipes.load(DATA, data, device, chosen.held_out, chosen.limit)
        for runner in race.runners:  # the first time pays for libraries and kernels
            next(runner.train(images, 0))
        run([race], images, chosen.seeds)
        results[race.title] = show(race, peaks, extra=0.0)
    size = Size(2, 64, 2, 128, 32, 2) if chosen.quick else Size()
    step = training_step(size, device, compiled=device == "cuda")
    seconds = []
    for _ in range(5 if chosen.quick else 25):
        _wait(torch.device(device))
        started = time.perf_counter()
        step()
        _wait(torch.device(device))
        seconds.append(time.perf_counter() - started)
    rate = size.flops() / statistics.median(seconds[3:])
    print(
        f"\na transformer's training step in bfloat16 ({size}): {statistics.median(seconds[3:]):.3f} s, {rate / 1e12:.2f} TFLOP/s, "
        f"{rate / peaks[True]:.0%} of the measured matmul peak"
    )
    return {**results, "transformer": {"rate": rate, "peak": peaks[True]}}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="How fast training gets, as ratios within one run.")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each recipe (default: 5)")
    parser.add_argument(
        "--held-out", action="store_true", help="judge on 5,000 training pictures kept apart: for tuning"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few pictures, few steps and small models: tries the program out, measures nothing",
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="of the GPU part (default: cuda if there is one, else leave it out)"
    )
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("training.py: --device cuda, but torch finds no GPU: nothing was measured")
    chosen.device = chosen.device or ("cuda" if torch.cuda.is_available() else None)
    chosen.limit = 512 if chosen.quick else None
    results = {"cpu": on_cpu(chosen)}
    if chosen.device:
        results["gpu"] = on_gpu(chosen)
    else:
        print("\nno GPU: time to 99 % and 94 % on a GPU and the transformer's step were not measured")
    print(LEGEND)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
