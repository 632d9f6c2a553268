"""Train a small classifier of pictures in one process.

    python scripts/train_single.py --dataset mnist --epochs 2

`train_ddp.py` is the same program for several processes; the lines that differ are marked `# NEW` there.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@torch.inference_mode()
def count_correct(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return (how many are right, how many there are)."""
    model.eval()
    correct = 0
    for x, y in zip(features.split(1000), labels.split(1000), strict=True):
        correct += int((model(x).argmax(1) == y).sum())
    return correct, len(labels)


def main() -> None:
    """Train, and say after each epoch how well."""
    arguments = read_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda, but torch finds no GPU here; leave --device out")
    has_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    device = torch.device("cuda" if has_gpu else "cpu")
    features, labels, fresh, truth = (t.to(device) for t in load(arguments))
    model = make_model(arguments, features).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)
    for epoch in range(arguments.epochs):
        started = time.perf_counter()
        # One order per epoch, which depends on the seed and the epoch alone: any number of processes can share it out.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(arguments.seed + epoch))
        loss_sum, seen = torch.zeros((), dtype=torch.float64, device=device), 0
        model.train()
        # A last, smaller batch is left out, so that every update averages over the same number of pictures.
        for batch in order[: len(order) // arguments.batch_size * arguments.batch_size].split(arguments.batch_size):
            x, y = features[batch], labels[batch]
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
                logits = model(x)
            loss = F.cross_entropy(logits if arguments.dtype == "float64" else logits.float(), y)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            seen += len(y)
        correct, total = count_correct(model, fresh, truth)
        seconds = time.perf_counter() - started
        loss_mean = float(loss_sum) / max(seen, 1)
        print(f"epoch {epoch + 1}  loss {loss_mean:.4f}  correct {correct} of {total}  {seconds:.1f} s", flush=True)
        if arguments.metrics:
            record = {"epoch": epoch + 1, "loss": loss_mean, "correct": correct, "total": total, "seconds": seconds}
            with arguments.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    if arguments.save:
        torch.save(model.state_dict(), arguments.save)


if __name__ == "__main__":
    main()
