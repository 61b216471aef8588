"""What the pages of running stages and of their run show, through Prefect's API; and that nothing of it can fail a stage."""

import json
import logging
import os
import shutil
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from flows import live
from flows.live import StageWatch, describe_alarms, describe_progress, live_folder, name_alarms, repeating
from tests.flows.server import until
from tests.flows.toy import Toy

pytestmark = pytest.mark.timeout(600)
ALARMS = {"weak_decoder": {"step": 3, "found": "PSNR is that of the mean image", "advice": "raise channels_multiplier"}}
SHOWN = {"format": "dae-live-1", "step": 3, "num_steps": 60, "caption": "step 3: originals", "alarms": ALARMS}


@pytest.fixture
def toy(served) -> Toy:
    """The served project, whose stages show pictures and an alarm after three tenths of a second."""
    toy = served.toy
    toy.set_tenths(5)
    toy.dvc("repro", "--quiet")
    folder = toy.folder / ".scratch/shown"
    folder.mkdir()
    Image.new("RGB", (8, 8), (0, 0, 200)).save(folder / "pictures.png")
    (folder / "live.json").write_text(json.dumps(SHOWN))
    yield toy
    shutil.rmtree(folder, ignore_errors=True)


def rows(served, run: str) -> list[dict]:
    return served.post("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}}).raise_for_status().json()


def test_a_running_stage_shows_progress_pictures_and_alarms_and_they_stay(served, toy):
    toy.set_tenths(80)
    run = served.trigger(stages=["stage1@a"])

    def all_there() -> dict | None:
        there = served.artifacts(run)
        keys = {"progress-stage1-a", "pictures-stage1-a", "alarms-stage1-a", "remaining"}
        return there if keys <= there.keys() and there["progress-stage1-a"]["data"] > 0 else None

    during = until(all_there, "the artifacts")
    assert toy.stages_running(), "shown only after it had ended"
    task = served.tasks(run)["stage1@a"]
    assert {key: row["task_run_id"] for key, row in during.items()} == {
        **dict.fromkeys(("progress-stage1-a", "pictures-stage1-a", "alarms-stage1-a"), task["id"]),
        "remaining": None,
    }
    progress = during["progress-stage1-a"]
    assert progress["data"] < 100 and " of 80 steps" in progress["description"] and " left" in progress["description"]
    assert during["pictures-stage1-a"]["data"].startswith("data:image/png;base64,")
    assert during["pictures-stage1-a"]["description"] == SHOWN["caption"]
    assert "PSNR is that of the mean image" in during["alarms-stage1-a"]["data"] and "raise channels" in during["alarms-stage1-a"]["data"]
    assert during["remaining"]["description"].startswith("0 of at most 1 stages have run")

    assert served.wait(run)["type"] == "COMPLETED"
    after = rows(served, run)
    assert len({row["key"] for row in after}) == len(after), "one that changes is no new one"
    after = {row["key"]: row for row in after}
    assert after["progress-stage1-a"]["data"] == 100 and after["progress-stage1-a"]["description"].startswith("finished in ")
    assert (after["remaining"]["data"], after["remaining"]["description"]) == (100, "1 of 1 stages have run")
    assert served.messages(run)["stage1@a"].endswith("; alarm: weak decoder (step 3)")
    logs = until(lambda: any("80/80" in line for line in served.logs(run)) and served.logs(run), "the bar's last line in the log")
    assert sum("alarm at step 3" in line for line in logs) == 1 and not any("\r" in line for line in logs)
    assert sum("step/s]" in line for line in logs) == 2  # the bar is on the page: its beginning and its end


def test_what_an_earlier_run_has_left_is_not_shown(served, toy):
    toy.set_tenths(6)
    served.run(stages=["stage1@a"])
    shutil.rmtree(toy.folder / ".scratch/shown")
    assert (toy.folder / ".scratch/live/stage1/a/live.json").exists()
    toy.set_tenths(7)
    run = served.run(stages=["stage1@a"])
    assert not {"pictures-stage1-a", "alarms-stage1-a"} & served.artifacts(run).keys()
    assert served.messages(run)["stage1@a"] == "ran: param stage1.warmup_steps: 6 -> 7; changed command"


def test_a_trial_shows_itself_apart_from_the_workspace(served, toy):
    toy.set_tenths(8)
    served.run(stages=["stage1@a"])
    workspaces = toy.folder / ".scratch/live/stage1/a/live.json"
    before = workspaces.stat().st_mtime_ns
    run = served.run(stages=["stage1@a"], overrides={"stage1.warmup_steps": 9})
    assert served.flow_run(run)["state"]["type"] == "COMPLETED"
    assert workspaces.stat().st_mtime_ns == before
    assert (toy.folder / ".scratch/live/trials" / served.flow_run(run)["name"] / "stage1/a/live.json").exists()
    assert {"pictures-stage1-a", "alarms-stage1-a"} <= served.artifacts(run).keys()


@pytest.mark.slow
def test_a_stage_that_fails_names_its_alarms_too(served, toy):
    toy.set_tenths(10)
    toy.order("stage1-a", "error: stage1: diverged")
    run = served.run(stages=["stage1@a"])
    (toy.folder / "do-stage1-a").unlink()
    assert served.messages(run)["stage1@a"] == "error: stage1: diverged; alarm: weak decoder (step 3)"


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """A watch over a folder with pictures of an earlier run, and what it shows by kind."""
    shown = {}
    page = SimpleNamespace(show=lambda kind, key, data, description: shown.update({kind: (key, data, description)}))
    monkeypatch.setattr(live, "Page", lambda: page)
    monkeypatch.setattr(live, "data_url", lambda path: path.read_text())
    folder = live_folder(tmp_path, "prior@dae-0")
    folder.mkdir(parents=True)
    (folder / "live.json").write_text(json.dumps(SHOWN))
    (folder / "pictures.png").write_text("stale")
    return StageWatch("prior@dae-0", folder, tmp_path / "progress.json", logging.getLogger("stage")), shown


def replace(path, text: str) -> None:
    """As writers do, with a clock that has gone wrong."""
    path.with_suffix(".tmp").write_text(text)
    os.utime(path.with_suffix(".tmp"), (0, 0))
    path.with_suffix(".tmp").replace(path)


def test_files_are_new_when_they_are_others_whatever_the_clock_says(watch):
    watch, shown = watch
    watch.look()
    assert shown == {"progress": ("progress-prior-dae-0", 0.0, "starting")} and not watch.alarms
    replace(watch.folder / "live.json", json.dumps(SHOWN | {"alarms": {}}))
    watch.look()
    assert "image" not in shown, "the pictures are still those of before"
    replace(watch.folder / "pictures.png", "new")
    watch.look()
    assert shown["image"] == ("pictures-prior-dae-0", "new", SHOWN["caption"]) and "markdown" not in shown


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", "{}", "[" * 10_000),
        *(json.dumps(SHOWN | wrong) for wrong in ({"format": "dae-live-9"}, {"alarms": []}, {"alarms": {"x": {}}}, {"caption": 3})),
    ],
)
def test_damage_is_nothing_to_show(watch, text):
    watch, shown = watch
    replace(watch.folder / "live.json", text)
    watch.record.write_text(text)
    watch.look()
    assert shown.keys() == {"progress"} and shown["progress"][1:] == (0.0, "starting") and not watch.alarms


def test_an_alarm_is_warned_of_once(watch, caplog):
    watch, shown = watch
    replace(watch.folder / "live.json", json.dumps(SHOWN))
    watch.look()
    watch.look()
    [line] = [record.getMessage() for record in caplog.records]
    assert line == "alarm at step 3: PSNR is that of the mean image; raise channels_multiplier"
    assert shown["markdown"] == ("alarms-prior-dae-0", describe_alarms("prior@dae-0", ALARMS), "prior@dae-0: weak decoder")
    assert name_alarms(watch.alarms) == "; alarm: weak decoder (step 3)" and name_alarms({}) == ""


def test_how_far_it_is_in_words():
    tree = {"done": 400.0, "total": 1200.0, "unit": "step", "description": "stage1 dae-0", "rate": 12.34}
    assert describe_progress(tree) == "stage1 dae-0: 400 of 1,200 steps, 12.3 steps/s, 65 s left"
    assert describe_progress(tree | {"rate": None, "unit": "img"}) == "stage1 dae-0: 400 of 1,200 images"


def test_a_server_that_is_gone_fails_nothing_and_is_said_once(caplog):
    calls = []

    def look() -> None:
        calls.append(time.monotonic())
        raise ConnectionError("gone\naway")

    with repeating(look, logging.getLogger("stage"), seconds=0.01):
        time.sleep(0.2)
    assert [record.getMessage() for record in caplog.records] == ["no longer shown while it runs: gone away"] and len(calls) == 1
