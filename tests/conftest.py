"""Before anything loads numpy or torch: threads as the stages have them (tasks/__init__.py says why)."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

from tests.clone import NUM_STAGES, Clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Clone:
    """A copy of the project after ``dvc repro``, committed; made once for all tests that look at one."""
    clone = Clone.of_working_tree(tmp_path_factory.mktemp("finished"))
    log = clone.dvc("repro")
    assert log.count("Running stage") == NUM_STAGES
    clone.commit("reproduced")
    return clone
