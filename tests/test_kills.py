"""A stage killed at any file operation, the last second included, ends with the same bytes when it is run again."""

import os
import re
import subprocess
import sys

import pytest

from tests.clone import PROJECT

CASES = {"toy": 30, "shards": 50, "encode": 40, "encode_continuous": 40, "prior": 60, "sample": 40}  # operations at the least
FAST = ("toy", "shards")


@pytest.mark.parametrize("case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_stage_killed_at_every_file_operation_ends_with_the_same_bytes(tmp_path, case):
    command = [sys.executable, "-m", "tests.killing.every_operation", case, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("DAE_SCRATCH", None)
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(re.match(r"operations: (\d+)", done.stdout)[1]) >= CASES[case]
