"""Fetching data from servers that deliver, truncate, corrupt, stall, refuse and lie."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from course import data
from course.datasets import ALL, DataFile, DataSet
from course.errors import CourseError

CONTENT = random.Random(0).randbytes(1_000_000)
FILE = DataFile("numbers-ubyte", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
NUMBERS = DataSet("numbers", "Numbers/raw", "MNIST", (FILE,), "npm", 1.0)


class Server(http.server.ThreadingHTTPServer):
    """A mirror whose first path component says how it behaves."""

    daemon_threads = True

    def address(self, behavior: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behavior}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        behavior = self.path.split("/")[1]
        body = gzip.compress(CONTENT)
        if behavior == "refuses":
            self.send_error(403)
            return
        if behavior == "corrupts":
            body = gzip.compress(CONTENT[:-1] + b"x")
        if behavior == "damages":
            body = body[: len(body) // 2] + b"\x00" * 40 + body[len(body) // 2 + 40 :]
        if behavior == "lengthens":
            body = gzip.compress(CONTENT + b"more")
        if behavior == "shortens":
            body = gzip.compress(CONTENT[:1000])
        if behavior == "page":
            body = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behavior == "truncates":
            self.wfile.write(body[: len(body) // 2])
            return
        if behavior == "stalls":
            self.wfile.write(body[:100])
            self.wfile.flush()
            time.sleep(3)
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_a_right_file_is_fetched_verified_and_kept(server: Server, tmp_path: Path):
    data.fetch(NUMBERS, tmp_path, [server.address("delivers")], packages=False)
    assert (tmp_path / "Numbers/raw/numbers-ubyte").read_bytes() == CONTENT
    assert data.verify(NUMBERS, tmp_path) == []
    data.fetch(NUMBERS, tmp_path, ["http://127.0.0.1:9/"], packages=False)  # nothing is asked of the dead mirror
    assert leftovers(tmp_path) == ["numbers-ubyte"]


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        ("truncates", "truncated"),
        ("shortens", "truncated"),
        ("corrupts", "wrong SHA-256"),
        ("damages", "numbers-ubyte.gz: "),
        ("lengthens", "more than"),
        ("stalls", "no byte for 0.5 s"),
        ("refuses", "403"),
        ("page", "no gzip file"),
    ],
)
def test_a_bad_mirror_leaves_nothing_and_says_what_to_do(server: Server, tmp_path: Path, behavior: str, reason: str):
    with pytest.raises(CourseError) as failure:
        data.fetch(NUMBERS, tmp_path, [server.address(behavior)], timeout=0.5, packages=False)
    assert reason in str(failure.value)
    assert "run `python -m course data numbers` again" in str(failure.value)
    assert leftovers(tmp_path) == []


def test_a_bad_mirror_is_followed_by_the_next(server: Server, tmp_path: Path):
    mirrors = [server.address(behavior) for behavior in ("refuses", "truncates", "corrupts", "delivers")]
    data.fetch(NUMBERS, tmp_path, mirrors, packages=False)
    assert data.verify(NUMBERS, tmp_path) == []
    assert leftovers(tmp_path) == ["numbers-ubyte"]


def test_no_network_at_all_is_told_in_one_message(tmp_path: Path):
    with pytest.raises(CourseError, match="not reachable"):
        data.fetch(NUMBERS, tmp_path, ["http://127.0.0.1:9/"], packages=False)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_a_wrong_file_that_is_there_is_set_aside_and_replaced(server: Server, tmp_path: Path, content: bytes):
    path = tmp_path / "Numbers/raw/numbers-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(CourseError, match="truncated or another file|damaged or changed"):
        data.require_set(NUMBERS, tmp_path)
    data.fetch(NUMBERS, tmp_path, [server.address("delivers")], packages=False)
    assert path.read_bytes() == CONTENT
    assert path.with_name("numbers-ubyte.wrong").read_bytes() == content


def test_a_wrong_file_is_not_left_under_its_name_when_nothing_replaces_it(tmp_path: Path):
    path = tmp_path / "Numbers/raw/numbers-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"wrong")
    with pytest.raises(CourseError):
        data.fetch(NUMBERS, tmp_path, ["http://127.0.0.1:9/"], packages=False)
    assert leftovers(tmp_path) == ["numbers-ubyte.wrong"]


def test_an_interruption_leaves_nothing_half_written(tmp_path: Path):
    def interrupted() -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data._store(interrupted(), tmp_path / FILE.name, FILE)
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "Numbers").write_text("a file where a folder has to be")
    with pytest.raises(CourseError, match="cannot write to"):
        data.fetch(NUMBERS, tmp_path, ["http://127.0.0.1:9/"], packages=False)


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(data.tempfile, "mkstemp", refuse)
    with pytest.raises(
        CourseError, match="Read-only file system. Make it writable or choose another folder with --root"
    ):
        data.fetch(NUMBERS, tmp_path, [server.address("delivers")], packages=False)
    assert leftovers(tmp_path) == []


def test_the_sizes_are_those_of_the_published_sets():
    for dataset in ALL.values():
        assert [file.size for file in dataset.files] == [16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000]


def test_torchvision_reads_what_was_fetched_without_downloading():
    from torchvision.datasets import MNIST

    from course.paths import DATA

    data.require(["mnist"])
    digits = MNIST(DATA, train=False, download=False)
    assert len(digits) == 10_000
    assert digits.targets[:5].tolist() == [7, 2, 1, 0, 4]
