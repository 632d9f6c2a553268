"""The environment with the oldest libraries: what is old in it, and what is not."""

from course import floor


def test_the_tools_are_those_of_the_lock_and_the_libraries_of_the_lessons_are_left_to_their_floors():
    pinned = dict(line.split("==") for line in floor.locked_tools())
    lock = floor.LOCK.read_text(encoding="utf-8")
    assert {"nbval", "nbclient", "ipykernel", "pytest", "onnx", "tensorboard"} <= set(pinned)
    assert not {"torch", "torchvision", "numpy", "matplotlib"} & set(pinned)
    for name, version in pinned.items():
        assert f"\n{name}=={version}" in lock


def test_every_library_of_the_lessons_has_a_floor():
    wanted = [
        line for line in floor.LOOSE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    assert [line.split(">=")[0] for line in wanted] == ["torch", "torchvision", "numpy", "matplotlib"]
    assert all(">=" in line for line in wanted)
