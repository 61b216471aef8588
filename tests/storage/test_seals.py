"""Seals: whatever is not what a stage has left, of the run that is asked for, is refused by name."""

import shutil

import pytest

from errors import PipelineError
from export.run import read_run
from params import load_params
from stage import PROJECT, execute
from storage.seals import SEAL, check_seals
from tasks.sample import STAGE as SAMPLE
from tests.export.runs import RUN, SEED, write_run
from tests.spoiling import survives

FREEZE, STAGE2 = f"artifacts/freeze/{RUN}", f"artifacts/stage2/{RUN}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "root", "transformer")


@pytest.fixture
def root(finished, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(finished, tmp_path / "copy")


def refused(root, *paths) -> str:
    with pytest.raises(PipelineError) as error:
        check_seals(root, [root / path for path in paths], [RUN])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_changed_byte_of_any_file_that_an_export_reads_is_refused_by_its_name(finished):
    files = [path for path in finished.rglob("*") if path.is_file() and path.suffix != ".tar" and path.name != SEAL]
    unread = (finished / "durations", finished / "metrics/sample")
    checked = [path for path in files if not any(path.is_relative_to(folder) for folder in unread)]
    assert len(checked) > 15
    for path in checked:
        data = path.read_bytes()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        with pytest.raises(PipelineError, match=f"^{path}: damaged or edited"):
            read_run(finished, "dae", SEED)
        path.write_bytes(data)
    read_run(finished, "dae", SEED)


def test_another_arms_or_seeds_or_stages_folder_is_refused(root):
    for other, stage in (("artifacts/freeze/baseline-3", "freeze"), ("artifacts/freeze/dae-4", "freeze"), (STAGE2, "freeze")):
        shutil.rmtree(root / FREEZE, ignore_errors=True)
        if other != STAGE2:
            (root / other).mkdir()
            text = f'{{"format": "dae-seal-1", "stage": "{stage}", "run": "{other.split("/")[-1]}", "files": {{}}, "records": {{}}}}'
            (root / other / SEAL).write_text(text)
        shutil.copytree(root / other, root / FREEZE)
        made_by, run = other.split("/")[1:]
        assert f"{FREEZE}: is of {made_by} {run}, not of freeze {RUN}" in refused(root, FREEZE)


def test_a_stage_checks_what_it_reads_before_it_works(root):
    (root / FREEZE / "probe.safetensors").write_bytes(b"")
    with pytest.raises(PipelineError, match=r"probe\.safetensors: damaged or edited"):
        execute(SAMPLE, load_params(PROJECT / "params.yaml"), "dae", SEED, root)


def test_files_that_are_missing_or_too_many_are_named(root):
    (root / STAGE2 / "decoder.json").unlink()
    assert "decoder.json: is missing; restore it with dvc checkout" in refused(root, STAGE2)
    (root / FREEZE / ".DS_Store").touch()
    check_seals(root, [root / FREEZE], [RUN])
    (root / FREEZE / "old.safetensors").touch()
    assert "old.safetensors: is none of the files that freeze has left there" in refused(root, FREEZE)


def test_a_folder_of_all_runs_is_checked_for_those_that_are_wanted(root):
    shutil.copytree(root / STAGE2, root / "artifacts/stage2/dae-4")
    check_seals(root, [root / "artifacts/stage2", root / "metrics"], [RUN])
    with pytest.raises(PipelineError, match=r"dae-4: is of stage2 dae-3, not of stage2 dae-4"):
        check_seals(root, [root / "artifacts/stage2"], [RUN, "dae-4"])
    (root / f"metrics/stage2/{RUN}.json").write_text("{}")
    assert f"metrics/stage2/{RUN}.json: damaged or edited" in refused(root, "artifacts/stage2", "metrics")


def test_a_seal_with_anything_missing_or_of_another_type_is_one_line(root):
    num_read, num_refused = survives(root / FREEZE / SEAL, lambda: check_seals(root, [root / FREEZE], [RUN]))
    assert num_refused > 20 and num_read < 10
    (root / FREEZE / SEAL).unlink()
    assert f"{SEAL}: no such file" in refused(root, FREEZE)
