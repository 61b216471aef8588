"""Finished runs and their exports, made once."""

import shutil

import pytest

from export.__main__ import export
from tests.export.runs import SEED, write_run


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """A finished run of each family; the transformer's and the DiT's are class-conditional."""
    folder = tmp_path_factory.mktemp("runs")
    return {family: write_run(folder / family, family, family != "maskgit") for family in ("transformer", "maskgit", "dit")}


@pytest.fixture(scope="session")
def folders(roots, tmp_path_factory):
    """Each of them exported."""
    folder = tmp_path_factory.mktemp("exported")
    for family, root in roots.items():
        export(root, "dae", SEED, folder / family)
    return {family: folder / family for family in roots}


@pytest.fixture
def spoiled(roots, tmp_path):
    """A copy of a run to spoil."""
    return shutil.copytree(roots["transformer"], tmp_path / "copy")
