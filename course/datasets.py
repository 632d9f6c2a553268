"""The data sets of the course: which files they consist of, and what these files must be, bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from course.errors import CourseError


@dataclass(frozen=True)
class DataFile:
    """One file: its name, size in bytes and SHA-256, unpacked."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """A data set in the folder layout that torchvision expects under its `root`."""

    name: str
    folder: str
    torchvision_class: str
    files: tuple[DataFile, ...]
    fallback: str
    download_mib: float


MNIST = DataSet(
    name="mnist",
    folder="MNIST/raw",
    torchvision_class="MNIST",
    files=(
        DataFile(
            "train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        DataFile("train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        DataFile(
            "t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        DataFile("t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    fallback="npm",
    download_mib=11.1,
)

FASHION_MNIST = DataSet(
    name="fashion-mnist",
    folder="FashionMNIST/raw",
    torchvision_class="FashionMNIST",
    files=(
        DataFile(
            "train-images-idx3-ubyte", 47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        DataFile("train-labels-idx1-ubyte", 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        DataFile(
            "t10k-images-idx3-ubyte", 7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        DataFile("t10k-labels-idx1-ubyte", 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    fallback="debian",
    download_mib=29.5,
)

ALL = {each.name: each for each in (MNIST, FASHION_MNIST)}


def named(name: str) -> DataSet:
    """Return the data set called `name`.

    Raises:
        CourseError: there is none of that name.
    """
    try:
        return ALL[name]
    except KeyError:
        raise CourseError(f"there is no data set `{name}`; there are {', '.join(ALL)}") from None


def fingerprint(name: str) -> str:
    """Return one hash for all files of a data set."""
    return hashlib.sha256(json.dumps([file.sha256 for file in named(name).files]).encode()).hexdigest()
