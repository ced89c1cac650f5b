"""The CUDA kernels under ThreadSanitizer: what no barrier orders must not touch one place.

The cases stand in `race_cases.py`, for a Python of their own: the sanitizer has to come first.
"""

import re

import pytest
from checkout import ROOT, TESTS
from emulator import compile_library, watching
from processes import run

# Not optimised: that would take the compiler longer than the cases take. Two blocks and more even
# where a kernel runs on an eighth of the device.
FLAGS = (
    *("-O0", "-g1", "-fsanitize=thread", "-DTCWARP_THREADS=64"),
    *("-UTCWARP_ENOUGH", "-DTCWARP_ENOUGH=1024"),
)


@pytest.mark.slow  # a minute, of which no change outside csrc/ and emulation/ makes use
def test_nothing_races(tmp_path):
    python, environment = watching()
    for source in "kernels", "planted":
        (tmp_path / f"{source}.so").symlink_to(compile_library(source, *FLAGS))
    # What is found is read case by case.
    options = f"log_path={tmp_path / 'report'} exitcode=0"
    command = [
        *python,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "helpers" / "race_cases.py"),
    ]
    environment |= {"TCWARP_RACES": str(tmp_path), "TSAN_OPTIONS": options}
    result = run(command, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= 60 and "skipped" not in result.stdout, result.stdout
