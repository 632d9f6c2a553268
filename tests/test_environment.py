"""What the first command says when something is missing on the machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from course import environment
from course.errors import CourseError


def test_an_old_python_gets_a_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 2))
    with pytest.raises(CourseError, match=r"this is Python 3\.9, the course needs 3\.11 or newer"):
        environment._check_machine()


def test_the_first_modules_can_be_read_by_an_old_python():
    import ast

    for name in ("__init__.py", "__main__.py", "environment.py", "errors.py"):
        source = (Path(environment.__file__).parent / name).read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 8))


def test_too_little_space_gets_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30})())
    with pytest.raises(CourseError, match=r"1\.0 GiB are free .* 8 are needed"):
        environment._check_machine()


def test_a_missing_venv_module_gets_a_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CourseError, match="apt-get install python3-venv"):
        environment._check_machine()


def test_a_failed_installation_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CourseError, match="could not install things .* Check the network"):
        environment._run([sys.executable, "-c", "raise SystemExit(1)"], "install things")


def test_every_command_has_help():
    done = subprocess.run(
        [sys.executable, "-m", "course", "--help"], capture_output=True, text=True, cwd=environment.ROOT
    )
    assert done.returncode == 0
    from course.__main__ import COMMANDS

    for name, (module, line) in COMMANDS.items():
        assert f"  {name} " in done.stdout and line in done.stdout
        assert module is None or (environment.ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_the_lock_and_the_web_lock_name_no_host():
    for name in ("requirements.txt", "requirements.in", "pyproject.toml"):
        assert "://" not in (environment.ROOT / name).read_text(encoding="utf-8"), name
    assert '"resolved"' not in (environment.ROOT / "package-lock.json").read_text(encoding="utf-8")
    assert "--hash=sha256:" in (environment.ROOT / "requirements.txt").read_text(encoding="utf-8")
