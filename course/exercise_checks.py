"""Prove that the checks of an exercise set are worth something.

Every worked solution passes, every untouched stub fails, and every recorded wrong answer fails with the message that
names its mistake. Each set runs in a process of its own, each variant in a fresh namespace.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from course.errors import CourseError
from course.exercises import Question, questions, released
from course.kernels import surroundings
from course.paths import EXERCISES
from course.sources import Source, exercise_sets, select


def problems(exercise_set: Source) -> tuple[list[str], int]:
    """Try all variants of a set in a separate process; return (what is wrong, number of variants tried)."""
    done = subprocess.run(
        [sys.executable, "-m", "course.exercise_checks", exercise_set.name],
        capture_output=True,
        text=True,
        env=surroundings(),
        timeout=600,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        return [f"{exercise_set.where}: the trial stopped: {lines[-1]}"], 0
    result = json.loads(done.stdout.splitlines()[-1])
    return result["problems"], result["tried"]


def problems_of(sets: list[Source]) -> Iterator[tuple[Source, list[str], int]]:
    """Try several sets, one process per core; yield (set, what is wrong, number of variants tried) in their order."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for exercise_set, (found, tried) in zip(sets, pool.map(problems, sets), strict=True):
            yield exercise_set, found, tried


def try_all(exercise_set: Source) -> tuple[list[str], int]:
    """Try every variant of every question in this process."""
    EXERCISES.mkdir(exist_ok=True)
    os.chdir(EXERCISES)  # where a learner's kernel runs
    stubs = {
        cell.metadata["nbgrader"]["grade_id"]: cell.source
        for cell in released(exercise_set).cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }
    found: list[str] = []
    tried = 0
    for question in questions(exercise_set):
        given = _given(exercise_set, question)
        stub = stubs[f"{question.name}-answer"]
        variants: list[tuple[str, int, str, str | None]] = []
        variants.append(("the worked solution", question.solution.line, question.solution.source, None))
        variants.append(("the untouched stub", question.solution.line, stub, ""))
        variants += [
            ("a wrong answer", wrong.line, wrong.source, wrong.metadata.get("expects")) for wrong in question.wrong
        ]
        for what, line, source, expected in variants:
            tried += 1
            place = f"{exercise_set.where}:{line}: {what} of `{question.name}`"
            if what == "a wrong answer" and not expected:
                found.append(f"{place} does not say what message it `expects`")
                continue
            if complaint := _judge(given, source, question, expected, stub=what == "the untouched stub"):
                found.append(f"{place} {complaint}")
    return found, tried


def _given(exercise_set: Source, question: Question) -> list[str]:
    """Return the sources of the untagged cells that stand before the question's check."""
    return [cell.source for cell in exercise_set.code if not cell.tags and cell.line < question.check.line]


def _judge(given: list[str], answer: str, question: Question, expected: str | None, stub: bool) -> str | None:
    """Run one variant; return what is wrong with the outcome, or None."""
    outcome, noise = _run([*given, answer, question.check.source])
    if expected is None:
        if outcome is not None:
            return f"fails its check: {type(outcome).__name__}: {_first_line(outcome)}"
        return f"writes to stderr, which nbgrader counts as a failure: {noise.splitlines()[0]}" if noise else None
    if outcome is None:
        return "passes its check"
    if stub:
        return (
            None
            if isinstance(outcome, (NotImplementedError, AssertionError))
            else f"fails with {type(outcome).__name__}, not with a clear message"
        )
    if not isinstance(outcome, AssertionError):
        return f"fails with {type(outcome).__name__} ({_first_line(outcome)}), not with a message of the check"
    if expected not in str(outcome):
        return f"fails with another message than `{expected}`: {str(outcome)[:160]}"
    return None


def _run(sources: list[str]) -> tuple[Exception | None, str]:
    namespace = {"__name__": "__main__"}
    noise = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(noise), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            for source in sources:
                exec(compile(source, "<exercise>", "exec"), namespace)
        except Exception as error:
            return error, noise.getvalue()
    return None, noise.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def command(options: list[str]) -> int:
    """Try the variants of the named sets (all by default) and report."""
    parser = argparse.ArgumentParser(
        prog="python -m course check-exercises",
        description="Try solutions, stubs and wrong answers against their checks.",
    )
    parser.add_argument("names", nargs="*", help="sets (default: all)")
    chosen = select(exercise_sets(), parser.parse_args(options).names)
    failed = 0
    for exercise_set, found, tried in problems_of(chosen):
        print(
            f"{exercise_set.where}: {len(questions(exercise_set))} questions, {tried} answers tried, {len(found)} problems",
            flush=True,
        )
        for line in found:
            print(f"  {line}")
        failed += len(found)
    if failed:
        raise CourseError(
            f"{failed} answers did not behave as they should; each line above names the file and line to mend"
        )
    return 0


if __name__ == "__main__":
    [_set] = select(exercise_sets(), [sys.argv[1]])
    _found, _tried = try_all(_set)
    print(json.dumps({"problems": _found, "tried": _tried}))
