"""The graph that flows take from DVC, and which part of it a run looks at."""

import subprocess
import sys
from pathlib import Path

import pytest

from errors import PipelineError
from flows.graph import Node, Settings, load_graph, select

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def graph() -> dict[str, Node]:
    return load_graph()


def test_it_is_dvcs_own_with_upstream_first(graph):
    listed = subprocess.run([sys.executable, "-m", "dvc", "stage", "list", "--name-only"], cwd=PROJECT, capture_output=True, text=True)
    assert sorted(graph) == sorted(listed.stdout.split())
    seen: set[str] = set()
    for name, node in graph.items():
        assert set(node.upstream) <= seen
        seen.add(name)
    assert graph["evaluate@dae-0"].upstream[-1] == "stage2@dae-0" and "prior@dae-0" in graph["sample@dae-0"].upstream


def test_training_stages_share_a_slot_and_are_tried_again(graph):
    for name in ("stage1@dae-0", "stage2@dae-0", "prior@dae-0"):
        assert graph[name].settings.slot == "compute" and graph[name].settings.retries > 0


def test_everything_is_selected_when_nothing_is_named(graph):
    assert select(graph, [], False) == (set(graph), set(graph))


def test_a_stage_brings_what_it_needs_and_on_request_what_needs_it(graph):
    targets, needed = select(graph, ["prior@dae-0"], False)
    assert targets == {"prior@dae-0"}
    assert needed == {"shards", "stage1@dae-0", "freeze@dae-0", "encode@dae-0", "prior@dae-0"}
    targets, needed = select(graph, ["prior@dae-0"], True)
    assert {"prior@dae-0", "sample@dae-0", "evaluate@dae-0", "report"} <= targets
    assert not targets & {"shards", "reference", "encode@dae-0", "stage2@dae-0", "prior@baseline-0", "evaluate@baseline-0"}
    assert {"stage2@dae-0", "evaluate@baseline-0"} <= needed - targets


def test_a_group_is_all_its_members(graph):
    assert select(graph, ["prior"], False)[0] == {"prior@baseline-0", "prior@dae-0"}


def test_an_unknown_stage_is_refused_with_the_known_groups(graph):
    with pytest.raises(PipelineError, match=r"no 'priors'; groups: encode, evaluate, .*prior"):
        select(graph, ["priors"], False)


def test_unknown_settings_in_meta_are_refused():
    with pytest.raises(ValueError, match="retires"):
        Settings.model_validate({"retires": 2})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dvc.yaml", None, "dvc.yaml: is not here or has no stages"),
        ("dvc.yaml", "", "dvc.yaml: is not here or has no stages"),
        ("dvc.yaml", "stages: [", "DVC: unable to read: 'dvc.yaml'"),
        ("dvc.yaml", "stages:\n  shards: 3\n", "DVC: './dvc.yaml' validation failed"),
        (".dvc/config", "[core", "DVC: config file error: Invalid line"),
        (".git", None, "is not a git repository; git init makes it one"),
    ],
)
def test_what_dvc_cannot_read_is_one_line_and_no_finished_run(tmp_path, monkeypatch, name, content, message):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    (tmp_path / "dvc.yaml").write_text("stages:\n  shards: {cmd: 'true', outs: [artifacts/shards]}\n")
    monkeypatch.chdir(tmp_path)
    assert list(load_graph()) == ["shards"]
    if content is not None:
        (tmp_path / name).write_text(content)
    else:
        (tmp_path / name).rename(tmp_path / "away")
    with pytest.raises(PipelineError) as error:
        load_graph()
    assert message in str(error.value) and "\n" not in str(error.value)
