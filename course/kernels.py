"""The surroundings that every kernel of the course runs in, so that recording and comparing see the same.

One thread unless `COURSE_THREADS` says otherwise (small models are many times slower with spinning threads), plain
figures, and deprecation warnings of the libraries as errors.
"""

from __future__ import annotations

import os
from functools import cache

from course.paths import BUILD

# Runs in every kernel before the first cell. FutureWarning is what libraries show to users; DeprecationWarning counts
# where the notebook's own line or torch caused it (ipykernel has some of its own).
STARTUP = """\
import warnings
warnings.filterwarnings("error", category=FutureWarning)
warnings.filterwarnings("error", category=DeprecationWarning, module=r"(__main__|torch.*)$")
del warnings
"""


def threads() -> int:
    """Return how many threads a kernel computes with (`COURSE_THREADS`, one by default)."""
    return int(os.environ.get("COURSE_THREADS", "1"))


@cache
def _ipython_folder() -> str:
    folder = BUILD / "ipython"
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "00-warnings.py").write_text(STARTUP, encoding="utf-8")
    return str(folder)


def surroundings() -> dict[str, str]:
    """Return the environment variables for a kernel or a trial process."""
    count = str(threads())
    return {
        **os.environ,
        "IPYTHONDIR": _ipython_folder(),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits does not spin on a core that others need
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "default::FutureWarning",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "NO_COLOR": "1",
    }
