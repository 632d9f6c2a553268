"""Ways to train on MNIST and Fashion-MNIST, from the usual teaching loop to the fastest we know; nothing is timed here.

A recipe is a generator: it trains, and yields a function that predicts whenever it would like to be judged. What
happens between two yields is its training time, which the caller takes (`training.py`).

Sources: the teaching loop is the one of most beginners' texts; `examples_mnist` follows the description of PyTorch's
examples/mnist (two convolutions of 3x3, dropout 0.25 and 0.5, Adadelta with a rate of 1 that shrinks by 0.7 an epoch).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

Predict = Callable[[Tensor], Tensor]  # pixels (N, 28, 28), uint8, on the device -> labels (N,)
MEAN, STD = {"MNIST": 0.1307, "FashionMNIST": 0.2860}, {"MNIST": 0.3081, "FashionMNIST": 0.3530}


@dataclass(frozen=True)
class Images:
    """A data set in memory, on the device that trains.

    Attributes:
        name: `MNIST` or `FashionMNIST`.
        source: the torchvision data set of the training part, with the usual transforms, for loops that read from it.
        pixels: of the training part, (N, 28, 28), uint8.
        labels: (N,), int64.
        judged: pixels that the accuracy is computed on, and `truth`, their labels.
    """

    name: str
    source: Subset
    pixels: Tensor
    labels: Tensor
    judged: Tensor
    truth: Tensor

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def accuracy(self, predict: Predict) -> float:
        """Return the share of `judged` that is predicted right."""
        right = sum(
            (predict(p) == t).sum() for p, t in zip(self.judged.split(2000), self.truth.split(2000), strict=True)
        )
        return float(right) / len(self.truth)


def load(root: Path, name: str, device: str, held_out: bool = False, limit: int | None = None) -> Images:
    """Read a data set: 60,000 pictures to train on and 10,000 to judge; with `held_out`, 55,000 and the other 5,000.

    Recipes are tuned with `held_out` only, never on the test set. `limit`: keep that many of each part, to try things out.

    Raises:
        RuntimeError: the files are not under `root`; `make data` fetches them.
    """
    family = getattr(torchvision.datasets, name)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN[name],), (STD[name],))])
    train = family(str(root), train=True, transform=usual)
    count = len(train) - 5000 if held_out else len(train)
    judged = train if held_out else family(str(root), train=False)
    start = count if held_out else 0
    count, end = min(count, limit or count), start + (limit or len(judged))
    return Images(
        name,
        Subset(train, range(count)),
        train.data[:count].to(device),
        train.targets[:count].to(device),
        judged.data[start:end].to(device),
        judged.targets[start:end].to(device),
    )


def mlp() -> nn.Sequential:
    """Return the network of the course's first lesson on MNIST: 784-256-128-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def mlp_flops(samples: int, inputs: int = 784) -> float:
    """Return the floating-point operations of training `mlp` on `samples`: forward, and backward without the input's part."""
    first, others = inputs * 256, 256 * 128 + 128 * 10
    return samples * (4 * first + 6 * others)


def triangle(step: int, steps: int, peak: float, warm_up: float = 0.2) -> float:
    """Return the learning rate of a step: up to `peak` within the first fifth, then down to almost nothing."""
    top = warm_up * steps
    return peak * min((step + 1) / top, (steps - step) / (steps - top))


def batches(pixels: Tensor, labels: Tensor, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` random batches of (N, ...) pixels and (N,) labels, each picture at most once an epoch."""
    generator = torch.Generator(pixels.device).manual_seed(seed)
    count = place = len(labels)
    for _ in range(steps):
        if place + size > count:
            order, place = torch.randperm(count, generator=generator, device=pixels.device), 0
        chosen = order[place : place + size]
        place += size
        yield pixels.index_select(0, chosen), labels[chosen]


def teaching_loop(images: Images, seed: int, epochs: int = 5) -> Iterator[Predict]:
    """The usual loop: torchvision's data set, a DataLoader, batches of 64, SGD. Judged after every epoch."""
    torch.manual_seed(seed)
    model = mlp().to(images.device)
    loader = DataLoader(images.source, batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        model.train()
        running_loss = 0.0
        for features, labels in loader:
            features, labels = features.to(images.device), labels.to(images.device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        yield _predict(model, images)


def examples_mnist(images: Images, seed: int, epochs: int = 14) -> Iterator[Predict]:
    """The recipe of PyTorch's examples/mnist. Judged after every epoch."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10), nn.LogSoftmax(1)),
    ).to(images.device)
    loader = DataLoader(images.source, batch_size=64, shuffle=True)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(epochs):
        model.train()
        for features, labels in loader:
            features, labels = features.to(images.device), labels.to(images.device)
            optimizer.zero_grad()
            F.nll_loss(model(features), labels).backward()
            optimizer.step()
        scheduler.step()
        yield _predict(model, images)


def in_memory(images: Images, seed: int, batch: int, steps: int, peak: float, half: bool) -> Iterator[Predict]:
    """The same network on batches gathered from memory, with Nesterov's momentum and a triangular schedule.

    `half`: multiply in bfloat16 (autocast); the weights stay float32.
    """
    torch.manual_seed(seed)
    model = mlp().to(images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, fused=True)
    for step, (pixels, labels) in enumerate(batches(images.pixels, images.labels, batch, steps, seed)):
        optimizer.param_groups[0]["lr"] = triangle(step, steps, peak)
        with _autocast(images, half):
            logits = model(_normalized(pixels, images))
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    yield _predict(model, images)


def by_hand(
    images: Images, seed: int, batch: int, steps: int, peak: float, half: bool, pooled: bool = False
) -> Iterator[Predict]:
    """Backward written out, all parameters and all momenta in one flat tensor each.

    `half`: multiply in bfloat16; the weights stay float32. `pooled`: learn from pictures of 12 x 12 (`_pooled`), all made
    beforehand: a first layer a fifth as large, and pixels of about equal variance, on which fewer steps are enough.
    """
    torch.manual_seed(seed)
    if pooled:
        ready = _pooled(images.pixels)
        mean, std = ready[:10_000].mean(0), ready[:10_000].std(0) + 0.1  # a pixel that is always dark stays small
        ready = ready.sub_(mean).div_(std)
    inputs = 144 if pooled else 784
    layers = [nn.Linear(inputs, 256), nn.Linear(256, 128), nn.Linear(128, 10)]
    initial = [parameter.detach() for layer in layers for parameter in layer.parameters()]
    sizes = [parameter.numel() for parameter in initial]
    flat = torch.cat([parameter.flatten() for parameter in initial]).to(images.device)
    gradient, momentum = torch.zeros_like(flat), torch.zeros_like(flat)

    def views(vector: Tensor) -> list[Tensor]:
        return [part.view(like.shape) for part, like in zip(vector.split(sizes), initial, strict=True)]

    kind = torch.bfloat16 if half else torch.float32
    low = flat.to(kind)  # the same tensor in float32
    w1, b1, w2, b2, w3, b3 = views(low)
    g1, c1, g2, c2, g3, c3 = views(gradient)
    rows = torch.arange(batch, device=images.device)
    pixels = ready.to(kind) if pooled else images.pixels
    for step, (x, labels) in enumerate(batches(pixels, images.labels, batch, steps, seed)):
        rate = triangle(step, steps, peak)
        if half:
            low.copy_(flat)
        if not pooled:
            x = _normalized(x, images).view(batch, 784).to(kind)
        h1 = torch.addmm(b1, x, w1.t()).relu_()
        h2 = torch.addmm(b2, h1, w2.t()).relu_()
        logits = torch.addmm(b3, h2, w3.t()).float()
        d3 = logits.softmax(1)  # the loss's gradient: probabilities minus one-hot labels, divided by B
        d3[rows, labels] -= 1
        d3 = d3.div_(batch).to(kind)
        d2 = (d3 @ w3).mul_(h2 > 0)
        d1 = (d2 @ w2).mul_(h1 > 0)
        for delta, below, weight, bias in ((d3, h2, g3, c3), (d2, h1, g2, c2), (d1, x, g1, c1)):
            if half:
                weight.copy_(delta.t() @ below)
            else:
                torch.mm(delta.t(), below, out=weight)
            torch.sum(delta, 0, dtype=torch.float32, out=bias)
        momentum.mul_(0.9).add_(gradient)
        flat.add_(gradient, alpha=-rate).add_(momentum, alpha=-0.9 * rate)  # Nesterov's step
    w1, b1, w2, b2, w3, b3 = views(flat)

    def predict(pixels: Tensor) -> Tensor:
        x = (_pooled(pixels) - mean) / std if pooled else _normalized(pixels, images).flatten(1)
        return (((x @ w1.t() + b1).relu() @ w2.t() + b2).relu() @ w3.t() + b3).argmax(1)

    yield predict


def _pooled(pixels: Tensor) -> Tensor:
    """Leave out a border of two pixels and average squares of 2 x 2: (N, 28, 28) uint8 -> (N, 144) float32, 0 to 1."""
    inner = pixels[:, 2:26, 2:26]
    total = inner[:, ::2, ::2].short()
    for row, column in ((0, 1), (1, 0), (1, 1)):
        total += inner[:, row::2, column::2]
    return total.flatten(1).float().div_(4 * 255)


def small_cnn(images: Images, seed: int, batch: int, epochs: int, peak: float, half: bool) -> Iterator[Predict]:
    """Two convolutions of 5x5 with pooling before batch normalization, channels last, a triangular schedule."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 5, padding=2, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)),
    ).to(images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, fused=True)
    steps = epochs * (len(images.labels) // batch)
    for step, (pixels, labels) in enumerate(batches(images.pixels, images.labels, batch, steps, seed)):
        optimizer.param_groups[0]["lr"] = triangle(step, steps, peak)
        with _autocast(images, half):
            logits = model(_normalized(pixels, images).to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    yield _predict(model, images, half)


def small_cnn_flops(samples: int) -> float:
    """Return the floating-point operations of training `small_cnn` on `samples`."""
    first, second, dense = 28 * 28 * 16 * 25, 14 * 14 * 32 * 16 * 25, 32 * 49 * 128 + 128 * 10
    return samples * (4 * first + 6 * (second + dense))


class Residual(nn.Module):
    """Add to a picture what two convolutions make of it: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus its correction."""
        return x + self.body(x)


def _convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())


def residual_net(images: Images, seed: int, epochs: int = 12, width: int = 64, peak: float = 0.4) -> Iterator[Predict]:
    """A small residual network with flipped and shifted pictures, for a GPU and Fashion-MNIST. Judged after every epoch."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        _convolution(1, width),
        *(_convolution(width, 2 * width, pool=True), Residual(2 * width)),
        *(_convolution(2 * width, 4 * width, pool=True), Residual(4 * width)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    ).to(images.device, memory_format=torch.channels_last)
    batch = 512
    steps = epochs * (len(images.labels) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for step, (pixels, labels) in enumerate(batches(images.pixels, images.labels, batch, steps, seed)):
        model.train()
        optimizer.param_groups[0]["lr"] = triangle(step, steps, peak)
        with _autocast(images, half=True):
            features = _shifted_and_flipped(_normalized(pixels, images)).to(memory_format=torch.channels_last)
            logits = model(features)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % (len(images.labels) // batch) == 0:
            yield _predict(model, images, half=True)


def _shifted_and_flipped(x: Tensor, most: int = 2) -> Tensor:
    """Shift each picture of (B, 1, 28, 28) by up to `most` pixels and mirror half of them."""
    count, _, height, width = x.shape
    padded = F.pad(x, (most,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * most + 1, (2, count, 1), device=x.device)
    rows = (top + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    columns = left + torch.arange(width, device=x.device)
    mirrored = torch.rand(count, 1, device=x.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns).view(count, 1, 1, width)
    return padded[torch.arange(count, device=x.device).view(-1, 1, 1, 1), 0, rows, columns]


def _normalized(pixels: Tensor, images: Images) -> Tensor:
    """Turn pixels (B, 28, 28), uint8, into features (B, 1, 28, 28) with about zero mean and unit variance."""
    mean, std = MEAN[images.name], STD[images.name]
    return pixels.unsqueeze(1).float().mul_(1 / (255 * std)).sub_(mean / std)


def _autocast(images: Images, half: bool) -> contextlib.AbstractContextManager:
    if half:
        return torch.autocast(images.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _predict(model: nn.Module, images: Images, half: bool = False) -> Predict:
    def predict(pixels: Tensor) -> Tensor:
        model.eval()
        with torch.inference_mode(), _autocast(images, half):
            return model(_normalized(pixels, images)).argmax(1)

    return predict
