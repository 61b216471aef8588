"""How the tests run: side by side in groups, their threads as the stages have them, hypothesis with few examples or many."""

import os

# Before anything loads numpy or torch; tasks/__init__.py says why. The cores are shared by the processes that test side by side.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))))

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.clone import NUM_STAGES, Clone

# A file's tests run in one process, and so do those of files that share what is made once. What takes longest begins first.
GROUPS = {
    "tests/test_pipeline.py": "finished",
    "tests/test_readme.py": "finished",
    "tests/test_architecture.py": "finished",
    "tests/flows/test_reproduce.py": "served",
    "tests/flows/test_serve.py": "served",
    "tests/flows/test_study.py": "served",
    "tests/training/test_cluster.py": "ray",
    "tests/flows/test_ending.py": "ending",
}


class Scheduler(LoadScopeScheduling):
    """xdist's own by groups; marks with --dist loadgroup do nothing under pytest 9.2 (pytest-xdist issue 1386)."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return GROUPS.get(file, file)


def pytest_xdist_make_scheduler(config, log) -> Scheduler:
    return Scheduler(config, log)


def pytest_configure(config):
    for name, num_examples in (("few", 30), ("many", 300)):
        unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
        settings.register_profile(name, derandomize=True, max_examples=num_examples, **unhurried)
    settings.load_profile("few" if "not slow" in config.option.markexpr else "many")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    order = list(GROUPS)
    items.sort(key=lambda item: order.index(file) if (file := item.nodeid.partition("::")[0]) in GROUPS else len(order))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Clone:
    """A copy of the project after ``dvc repro``, committed; made once for all tests that look at one."""
    clone = Clone.of_working_tree(tmp_path_factory.mktemp("finished"))
    log = clone.dvc("repro")
    assert log.count("Running stage") == NUM_STAGES
    clone.commit("reproduced")
    return clone
