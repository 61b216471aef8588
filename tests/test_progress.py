"""The file that a bar keeps for whoever watches, and what the log has then."""

import json

import pytest

import progress
from progress import WATCHED_VARIABLE, progress_bar


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Where the file is, and a clock that the test moves."""
    monkeypatch.setenv(WATCHED_VARIABLE, str(tmp_path / "progress.json"))
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return tmp_path / "progress.json", now


def test_a_watched_bar_says_how_far_it_is_and_how_fast_of_late(record):
    path, now = record
    with progress_bar(800, "stage1 dae-0", "step", initial=200) as bar:
        assert json.loads(path.read_text()) == {"done": 200, "total": 800, "unit": "step", "description": "stage1 dae-0", "rate": None}
        for _ in range(60):  # a slow minute, and then a fast one
            now[0] += 1
            bar.update(1)
        assert json.loads(path.read_text())["rate"] == pytest.approx(1.0)
        for _ in range(60):
            now[0] += 1
            bar.update(5)
        tree = json.loads(path.read_text())
        assert tree["done"] == 560 and tree["rate"] == pytest.approx(5.0)
        bar.update(240)
    assert json.loads(path.read_text())["done"] == 800


def test_it_is_written_once_a_second_at_most(record, monkeypatch):
    path, now = record
    with progress_bar(100, "encode dae-0", "img") as bar:
        bar.update(50)
        assert json.loads(path.read_text())["done"] == 0
        now[0] += 1
        bar.update(1)
        assert json.loads(path.read_text())["done"] == 51


def test_nobody_watches_or_the_folder_is_gone_and_the_stage_goes_on(tmp_path, monkeypatch):
    monkeypatch.delenv(WATCHED_VARIABLE, raising=False)
    with progress_bar(2, "shards", "img") as bar:
        bar.update(2)
    monkeypatch.setenv(WATCHED_VARIABLE, str(tmp_path / "gone/progress.json"))
    with progress_bar(2, "shards", "img") as bar:
        bar.update(2)
    assert bar.n == 2 and not list(tmp_path.iterdir())


def test_a_log_has_lines_and_no_carriage_returns(capsys):
    with progress_bar(2, "shards", "img") as bar:
        bar.update(2)
    lines = capsys.readouterr().err
    assert "\r" not in lines and lines.endswith("\n") and "2/2" in lines.splitlines()[-1]
