"""What a run's page says remains, by earlier runs and by the bars of what runs."""

import pytest

from flows import outlook as outlook_module
from flows.outlook import Outlook
from stage_times import START_SECONDS, Point

NAMES = ["stage1@dae-0", "stage1@dae-1", "prior@dae-0", "report"]
RECORDS = {Point("stage1", "dae", 0): 300.0 - START_SECONDS, Point("prior", "dae", 0): 600.0 - START_SECONDS}


@pytest.fixture
def now(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(outlook_module.time, "monotonic", lambda: now[0])
    return now


def test_what_waits_counts_whole_and_what_runs_by_its_own_bar_once_it_has_one(now):
    outlook, bar = Outlook(NAMES, RECORDS, 1), []
    assert outlook.tell() == (0.0, "0 of at most 4 stages have run, about 21 min left")  # 5 + 5 + 10 min and 5 s
    outlook.begin("stage1@dae-0", lambda: bar[-1] if bar else None)
    now[0] += 240
    assert outlook.tell()[1].endswith("about 17 min left")
    bar.append(600.0)  # this time it takes longer
    assert outlook.tell()[1].endswith("about 26 min left")
    outlook.end("stage1@dae-0", ran=True)
    assert outlook.tell() == (25.0, "1 of at most 4 stages have run, about 16 min left")


def test_what_came_from_the_cache_is_no_stage_that_runs_and_what_nobody_expected_is(now):
    outlook = Outlook(NAMES[:2], RECORDS, 1)
    outlook.end("stage1@dae-0", ran=False)
    assert outlook.num_stages == 1
    outlook.begin("prior@dae-0", lambda: None)
    outlook.end("prior@dae-0", ran=True)
    assert outlook.tell()[1].startswith("1 of at most 2 stages have run")


def test_what_nobody_knows_is_named_and_what_was_just_timed_is_known(now):
    outlook = Outlook(["sample@dae-0", "sample@dae-1"], {}, 1)
    assert outlook.tell()[1] == "0 of at most 2 stages have run, what sample will take, not on record yet"
    outlook.begin("sample@dae-0", lambda: None)
    now[0] += 90
    outlook.end("sample@dae-0", ran=True)
    assert outlook.tell() == (50.0, "1 of at most 2 stages have run, about 90 s left")


def test_places_share_the_time_and_a_run_that_has_failed_promises_nothing(now):
    outlook = Outlook(NAMES[:2], RECORDS, 2)
    assert outlook.tell()[1].endswith("about 5 min left")
    for _ in range(2):  # tried again
        outlook.begin("stage1@dae-0", lambda: None)
        outlook.end("stage1@dae-0", ran=False)
    outlook.is_over = True
    assert outlook.tell() == (0.0, "0 of at most 1 stages have run")
