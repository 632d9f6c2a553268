"""Train a small classifier of pictures in several processes that share out every batch.

    torchrun --standalone --nproc-per-node 2 scripts/train_ddp.py --dataset mnist --epochs 2

The same program as `train_single.py`, which takes the same steps on the same batches; the lines that differ are marked
`# NEW`. On a machine with GPUs each process takes one of them (NCCL), elsewhere they compute on the CPU (gloo).
"""

import argparse
import contextlib  # NEW
import hashlib  # NEW
import json
import os  # NEW
import time
from datetime import timedelta  # NEW
from pathlib import Path

import torch
import torch.distributed as dist  # NEW
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel  # NEW
from torch.utils.data import DistributedSampler, TensorDataset  # NEW

STATISTICS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}  # mean and standard deviation of the pixels


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--dataset", choices=[*STATISTICS, "synthetic"], default="mnist", help="synthetic: made in memory"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--limit", type=int, help="train on the first so many pictures")
    parser.add_argument("--limit-validation", type=int, help="validate on the first so many pictures")
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256, help="pictures per update, all processes together")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=["float32", "float64", "bfloat16"], default="float32", help="bfloat16: autocast"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--save", type=Path, help="write the final weights to this file")
    parser.add_argument("--accumulate", type=int, default=1, help="backward passes per update, in each process")  # NEW
    parser.add_argument("--timeout", type=int, default=300, help="seconds to wait for another process")  # NEW
    parser.add_argument("--metrics", type=Path, help="write one line of JSON per epoch to this file")
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features (N, 1, H, W) and labels (N,) to train on, and the same to validate on."""
    if arguments.dataset == "synthetic":  # pictures of 8 x 8 that a linear teacher has labeled
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(6000, 1, 8, 8, generator=generator)
        labels = (features.flatten(1) @ torch.randn(64, 10, generator=generator)).argmax(1)
        parts = [(features[:5000], labels[:5000]), (features[5000:], labels[5000:])]
    else:
        import torchvision  # slow to import, and synthetic pictures do without

        family = {"mnist": torchvision.datasets.MNIST, "fashion-mnist": torchvision.datasets.FashionMNIST}
        mean, std = STATISTICS[arguments.dataset]
        parts = []
        for train in (True, False):
            try:
                pictures = family[arguments.dataset](str(arguments.data), train=train)
            except RuntimeError:
                raise SystemExit(
                    f"{arguments.dataset} is not in the folder `{arguments.data}`; fetch it with `python -m course data`, "
                    "name its folder with --data, or use --dataset synthetic"
                ) from None
            parts.append((pictures.data.unsqueeze(1).float().div(255).sub(mean).div(std), pictures.targets))
    (features, labels), (fresh, truth) = parts
    kind = torch.float64 if arguments.dtype == "float64" else torch.float32
    limit, check = arguments.limit, arguments.limit_validation
    if len(labels[:limit]) < arguments.batch_size:
        raise SystemExit(
            f"{len(labels[:limit])} pictures do not fill one batch of {arguments.batch_size} (--batch-size)"
        )
    return features[:limit].to(kind), labels[:limit], fresh[:check].to(kind), truth[:check]


def make_model(arguments: argparse.Namespace, features: Tensor) -> nn.Module:
    """Return a network for pictures like `features`, with weights that depend on the seed alone."""
    torch.manual_seed(arguments.seed)
    side = features.shape[-1]
    if arguments.model == "mlp":
        model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 128), nn.ReLU(), nn.Linear(128, 10))
    else:
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10)),
        )
    return model.to(features.dtype)


# NEW: what one process finds out, and all of them have to agree on
def stop_if_ranks_disagree(what: str, *tensors: Tensor) -> None:
    """End all processes if these tensors are not the same in each of them.

    Each would train on its own data, the gradients would be averaged all the same, and nobody would notice.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    everybody: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everybody, digest.hexdigest())
    if len(set(everybody)) > 1:
        odd = [rank for rank, each in enumerate(everybody) if each != everybody[0]]
        raise SystemExit(
            f"rank {dist.get_rank()}: ranks {odd} have other {what} than rank 0; give all of them the same files"
        )


@torch.inference_mode()
def count_correct(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return (how many are right, how many there are)."""
    model.eval()
    correct = 0
    for x, y in zip(features.split(1000), labels.split(1000), strict=True):
        correct += int((model(x).argmax(1) == y).sum())
    return correct, len(labels)


# NEW: the sums of all processes
def count_everywhere(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return (how many are right, how many there are), each process judging its own share.

    The shares are not padded, so nobody is counted twice. Counts can be added; averages of unequal shares could not.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    correct, total = count_correct(model, features[rank::world_size], labels[rank::world_size])
    sums = torch.tensor([correct, total], device=features.device)
    dist.all_reduce(sums)
    return int(sums[0]), int(sums[1])


def main() -> None:
    """Train, and say after each epoch how well."""
    arguments = read_arguments()
    # NEW: torchrun tells each process who it is
    if "RANK" not in os.environ:
        raise SystemExit(
            "this program runs in several processes; start it with "
            "`torchrun --standalone --nproc-per-node 2 scripts/train_ddp.py`"
        )
    global_rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    micro_batch, remainder = divmod(arguments.batch_size, world_size * arguments.accumulate)
    if remainder:
        reason = (
            f"--batch-size {arguments.batch_size} cannot be shared out evenly: make it a multiple of "
            f"{world_size} processes x {arguments.accumulate} (--accumulate)"
        )
        raise SystemExit(reason if global_rank == 0 else 1)

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda, but torch finds no GPU here; leave --device out")
    has_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    # NEW: one GPU each: the local rank counts within a machine, the global rank over all of them
    if has_gpu and torch.cuda.device_count() < local_world_size:
        raise SystemExit(
            f"{local_world_size} processes on this machine and {torch.cuda.device_count()} GPUs; "
            "start fewer processes, or use --device cpu"
        )
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=timedelta(seconds=arguments.timeout))  # NEW

    features, labels, fresh, truth = (t.to(device) for t in load(arguments))
    stop_if_ranks_disagree("data", features, labels, fresh, truth)  # NEW
    model = make_model(arguments, features).to(device)
    # NEW: every process starts from the weights of rank 0
    replica = DistributedDataParallel(model, device_ids=[local_rank] if has_gpu else None)  # NEW

    # NEW: the places of this process, every world_size-th of the epoch's order
    everything = TensorDataset(features, labels)
    sampler: DistributedSampler = DistributedSampler(
        everything, world_size, global_rank, seed=arguments.seed, drop_last=True
    )

    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)
    for epoch in range(arguments.epochs):
        started = time.perf_counter()
        sampler.set_epoch(epoch)  # NEW: without it every epoch has the same order
        order = torch.tensor(list(sampler))  # NEW
        share = arguments.batch_size // world_size  # NEW
        loss_sum, seen = torch.zeros((), dtype=torch.float64, device=device), 0
        model.train()
        # A last, smaller batch is left out, so that every update averages over the same number of pictures.
        for batch in order[: len(labels) // arguments.batch_size * share].split(share):  # NEW
            optimizer.zero_grad()
            for i, places in enumerate(batch.split(micro_batch)):  # NEW
                x, y = features[places], labels[places]  # NEW
                # Gradients travel with the last backward of an update only; the ones before it add up at home.
                last = i + 1 == arguments.accumulate  # NEW
                with contextlib.nullcontext() if last else replica.no_sync():  # NEW
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
                        logits = replica(x)  # NEW
                    loss = F.cross_entropy(logits if arguments.dtype == "float64" else logits.float(), y)
                    (loss / arguments.accumulate).backward()  # NEW
                loss_sum += loss.detach() * len(y)
                seen += len(y)
            optimizer.step()
        correct, total = count_everywhere(model, fresh, truth)  # NEW
        examples = torch.tensor(seen, device=device)  # NEW
        dist.all_reduce(loss_sum)  # NEW
        dist.all_reduce(examples)  # NEW
        seconds = time.perf_counter() - started
        loss_mean = float(loss_sum) / max(int(examples), 1)  # NEW
        if global_rank != 0:  # NEW: everybody has computed it, one says it
            continue  # NEW
        print(f"epoch {epoch + 1}  loss {loss_mean:.4f}  correct {correct} of {total}  {seconds:.1f} s", flush=True)
        if arguments.metrics:
            record = {"epoch": epoch + 1, "loss": loss_mean, "correct": correct, "total": total, "seconds": seconds}
            with arguments.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    if arguments.save and global_rank == 0:  # NEW
        torch.save(model.state_dict(), arguments.save)
    # NEW: DDP holds on to the group. It goes first, or else the group ends with this function, which waits for the
    # NEW: group's threads, and these may wait for Python's lock, which the function holds.
    del replica  # NEW
    dist.destroy_process_group()  # NEW


if __name__ == "__main__":
    main()
