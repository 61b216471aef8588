"""The whole pipeline, run by DVC on real code in a copy of the project: cached, restored, shared, repeatable, killed.

One run is shared by all tests. A second one in another folder has every stage of one arm killed on its way, and must end
with the same bytes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from plumbing import NO_RESULT_DEPENDS_ON
from tests.clone import NUM_STAGES, PER_ARM, PRODUCED, Clone
from tests.families import with_family

pytestmark = pytest.mark.timeout(900)

ARM = ("--arm", "dae", "--seed", "0")
WITHOUT_DURATIONS = ("artifacts", "metrics", "curves")


def test_every_output_exists(finished):
    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())
    outputs = [out["path"] for stage in lock["stages"].values() for out in stage["outs"]]
    assert len(lock["stages"]) == NUM_STAGES
    assert all((finished.folder / output).exists() for output in outputs)
    scratch = finished.folder / ".scratch"
    left = {path.relative_to(scratch).parts[0] for path in scratch.glob("*/*/*/")}
    assert left == {"live"}, "what stages have shown stays, and no state of finished ones"


def test_git_sees_nothing_but_the_lock_file(finished):
    assert finished.run("git", "status", "--short") == ""
    tracked = finished.run("git", "ls-files").splitlines()
    assert "dvc.lock" in tracked
    assert not [name for name in tracked if name.split("/")[0] in PRODUCED]


def test_summary_has_both_arms_and_their_protocol(finished):
    summary = json.loads((finished.folder / "report/summary.json").read_text())
    assert list(summary["arms"]) == summary["arm_names"] == ["baseline", "dae"]
    for arm in summary["arms"].values():
        assert list(arm["runs"]) == ["0"]
        measured = ("reconstruction_stage2.fd_efficientnet_lite0", "samples.precision", "prior.validation_nll_nats_per_token")
        assert all(isinstance(arm["mean"][name], float) for name in measured)
    assert summary["floor"]["fd_efficientnet_lite0"] > 0 and summary["verdict"]["headline"]
    for run in ("baseline-0", "dae-0"):
        metrics = json.loads((finished.folder / f"metrics/evaluate/{run}.json").read_text())
        assert metrics["protocol"]["num_images"] == 60
        assert metrics["samples"]["fd_efficientnet_lite0"] > 0
        grids = {path.name for path in (finished.folder / f"artifacts/evaluate/{run}").glob("*.png")}
        pictures = {"best.png", "worst.png", "neighbours.png"}
        assert grids == {"real.png", "reconstruction_stage1.png", "reconstruction_stage2.png", "samples.png", *pictures}


def test_report_is_one_page_that_needs_nothing_else(finished):
    page = (finished.folder / "report/index.html").read_text()
    assert "<html" in page and "data:image/png;base64" in page
    for fetched in ('src="http', "src='http", "<link rel=\"stylesheet", "@import", "<script src", "url(http"):
        assert fetched not in page


def test_metrics_of_one_graph_agree(finished):
    """The same quantity, measured in two stages, is the same: stage 1's validation and the evaluation's reconstructions."""
    read = {name: json.loads((finished.folder / f"metrics/{name}/dae-0.json").read_text()) for name in PER_ARM}
    hashes = {read[name]["frozen_sha256"] for name in ("freeze", "encode", "prior", "sample", "evaluate")}
    assert len(hashes) == 1
    assert read["evaluate"]["reconstruction_stage1"]["psnr_db"] == pytest.approx(read["stage1"]["validation_psnr_db"], abs=0.05)
    assert read["evaluate"]["reconstruction_stage2"]["psnr_db"] == pytest.approx(read["stage2"]["validation_psnr_db"], abs=0.05)
    assert read["evaluate"]["latent"]["codebook_perplexity"] == pytest.approx(read["stage1"]["validation_codebook_perplexity"])
    assert read["evaluate"]["prior"]["validation_nll_nats_per_token"] == read["prior"]["validation_nll_nats_per_token"]


def test_second_run_runs_nothing(finished):
    log = finished.dvc("repro")
    assert "Running stage" not in log
    assert "Data and pipelines are up to date." in log


def test_runtime_settings_rerun_nothing(finished):
    finished.change_params({"runtime": {"num_threads": 1, "checkpoint_every_steps": 5}})
    assert "Running stage" not in finished.dvc("repro", "--dry")
    finished.run("git", "checkout", "params.yaml")


def edit(clone: Clone, names: list[str]) -> None:
    for name in names:
        with (clone.folder / name).open("a") as file:
            file.write("\nCHANGED = True\n")


def test_a_change_of_plumbing_reruns_nothing(finished):
    edit(finished, list(NO_RESULT_DEPENDS_ON))
    assert "Data and pipelines are up to date." in finished.dvc("status")
    assert "Running stage" not in finished.dvc("repro")
    finished.run("git", "checkout", *NO_RESULT_DEPENDS_ON)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("models/latent_noise.py", {"stage1", "stage2"}),
        ("training/schedule.py", {"stage1", "stage2", "prior"}),
        ("models/dit.py", {"prior", "sample", "evaluate"}),
        ("storage/latents.py", {"stage1", "encode", "stage2", "prior", "evaluate"}),
        ("reporting/verdict.py", {"report"}),
    ],
)
def test_a_change_of_what_decides_results_reruns_what_imports_it(finished, name, stages):
    edit(finished, [name])
    status = json.loads(finished.dvc("status", "--json"))
    changed = {stage.partition("@")[0] for stage, reasons in status.items() if {"changed deps": {name: "modified"}} in reasons}
    assert changed == stages
    finished.run("git", "checkout", name)


def test_deleted_outputs_come_back_without_their_stages(finished):
    before = finished.files(*PRODUCED)
    finished.run("rm", "-r", "artifacts/prior/dae-0", "metrics/prior", "curves", "report", "artifacts/shards/manifest.json")
    log = finished.dvc("repro")
    assert "Running stage" not in log
    assert "Stage 'prior@dae-0' is cached - skipping run" in log
    assert finished.files(*PRODUCED) == before


def test_prefect_takes_the_whole_graph_and_finds_it_finished(finished):
    printed = finished.run(sys.executable, "-m", "flows.reproduce")
    assert printed.count("Cached(") == NUM_STAGES and f"0 stages ran, {NUM_STAGES} were cached" in printed
    assert finished.run("git", "status", "--short") == ""


@pytest.mark.slow
def test_both_families_live_side_by_side_in_the_cache(finished):
    """After a visit to the other family, here as far as its frozen encoder, the way back restores everything and runs nothing."""
    before = finished.files(*PRODUCED)
    path = finished.folder / "params.yaml"
    path.write_text(yaml.safe_dump(with_family(yaml.safe_load(path.read_text()), "kl", "dit", "heun")))
    assert "Running stage 'freeze@dae-0'" in finished.dvc("repro", "freeze@dae-0")
    config = json.loads((finished.folder / "artifacts/freeze/dae-0/config.json").read_text())
    assert config["bottleneck"]["kind"] == "kl"
    finished.run("git", "checkout", "params.yaml")
    log = finished.dvc("repro")
    assert "Running stage" not in log
    assert finished.files(*PRODUCED) == before
    assert finished.run("git", "status", "--short") == ""


def test_dvc_shows_metrics_plots_and_parameters(finished):
    shown = json.loads(finished.dvc("metrics", "show", "--json"))[""]["data"]
    assert {f"metrics/{stage}/{run}.json" for stage in PER_ARM for run in ("baseline-0", "dae-0")} <= shown.keys()
    assert all("error" not in entry for entry in shown.values())

    finished.change_params({"prior": {"width": 64}, "arms": {"dae": {"stage1": {"dropout": 0.25}}}})
    differences = json.loads(finished.dvc("params", "diff", "--json"))["params.yaml"]
    assert differences == {
        "prior.width": {"old": 32, "new": 64, "diff": 32},
        "arms.dae.stage1.dropout": {"old": 0.5, "new": 0.25, "diff": -0.25},
    }
    planned = finished.dvc("repro", "--dry")
    running = [line.split("'")[1] for line in planned.splitlines() if line.startswith("Running stage")]
    assert running[0] == "stage1@dae-0" and "prior@baseline-0" in running and "stage1@baseline-0" not in running
    finished.run("git", "checkout", "params.yaml")

    assert "index.html" in finished.dvc("plots", "show")
    page = (finished.folder / "dvc_plots/index.html").read_text()
    drawn = (f"curves/{stage}/dae-0.csv" for stage in ("stage1", "stage2", "prior"))
    assert all(text in page for text in ("pixel", "nll_nats_per_token", *drawn))
    assert finished.run("git", "status", "--short") == ""


def test_another_clone_pulls_everything_and_runs_nothing(finished, tmp_path):
    before = finished.files(*PRODUCED)
    finished.dvc("remote", "add", "--local", "--default", "shared", str(tmp_path / "remote"))
    finished.dvc("push")
    finished.run("git", "clone", "--quiet", ".", str(tmp_path / "second"))
    second = Clone(tmp_path / "second")
    second.dvc("remote", "add", "--local", "--default", "shared", str(tmp_path / "remote"))
    second.dvc("pull")
    assert second.files(*PRODUCED) == before
    log = second.dvc("repro")
    assert "Running stage" not in log
    assert "Data and pipelines are up to date." in log


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory) -> Clone:
    """The same project in another folder, from scratch; the tests below run its stages in turn, killing them."""
    return finished.copy(tmp_path_factory.mktemp("killed") / "project", with_produced=False)


def assert_same(killed: Clone, finished: Clone, stage: str, run: str = "/dae-0") -> None:
    """What a stage wrote in both folders is the same, byte for byte."""
    outputs = [killed.files(f"artifacts/{stage}{run}"), finished.files(f"artifacts/{stage}{run}")]
    for path in (f"metrics/{stage}{run}.json", f"curves/{stage}{run}.csv"):
        for output, clone in zip(outputs, (killed, finished), strict=True):
            if (clone.folder / path).exists():
                output[path] = (clone.folder / path).read_bytes()
    assert outputs[0].keys() == outputs[1].keys()
    assert [name for name in outputs[0] if outputs[0][name] != outputs[1][name]] == []


def durations(clone: Clone, stage: str) -> dict:
    return json.loads((clone.folder / f"durations/{stage}/dae-0.json").read_text())


def checkpoint_step(clone: Clone, stage: str) -> int:
    """Finished steps in the last checkpoint of the stage that is being trained; 0 when there is none."""
    return max((int(path.name.split("-")[1]) for path in (clone.folder / ".scratch" / stage).rglob("checkpoint-*.pt")), default=0)


def wait_for_checkpoint(clone: Clone, stage: str, process: subprocess.Popen) -> int:
    """Wait for training to write a checkpoint; return its step."""
    while not (step := checkpoint_step(clone, stage)):
        assert process.poll() is None, f"{stage} ended before its first checkpoint:\n{process.stdout.read()}"
        time.sleep(0.02)
    return step


def test_shards_killed_resume_to_the_same_bytes(killed, finished):
    killed.kill_stage("storage.shards.write_encoded_shard", 3, "shards")
    assert not (killed.folder / "artifacts").exists()
    killed.stage("shards")
    assert json.loads((killed.folder / "durations/shards.json").read_text())["resumed"]
    assert_same(killed, finished, "shards", run="")


def test_stage1_killed_resumes_to_the_same_bytes(killed, finished):
    killed.kill_stage("training.checkpoint.save_checkpoint", 2, "stage1", *ARM)
    assert checkpoint_step(killed, "stage1") == 8
    assert not (killed.folder / "artifacts/stage1").exists()
    killed.stage("stage1", *ARM)
    assert durations(killed, "stage1")["resumed"]
    assert_same(killed, finished, "stage1")


@pytest.mark.slow
def test_encode_killed_resumes_to_the_same_bytes(killed, finished):
    killed.stage("freeze", *ARM)
    assert_same(killed, finished, "freeze")
    killed.kill_stage("storage.latents.write_latents", 3, "encode", *ARM)
    written = list((killed.folder / ".scratch/encode").rglob("*.arrow"))
    recorded = {path.name: path.stat().st_mtime_ns for path in written if path.with_suffix(".json").exists()}
    assert (len(written), len(recorded)) == (3, 2)
    killed.stage("encode", *ARM)
    for name, modified in recorded.items():  # the two finished ones were not made again
        assert (killed.folder / "artifacts/encode/dae-0" / name).stat().st_mtime_ns == modified
    assert durations(killed, "encode")["resumed"]
    assert_same(killed, finished, "encode")


@pytest.mark.slow
def test_stage2_killed_resumes_to_the_same_bytes(killed, finished):
    killed.kill_stage("training.checkpoint.save_checkpoint", 1, "stage2", *ARM)
    assert checkpoint_step(killed, "stage2") == 4
    killed.stage("stage2", *ARM)
    assert durations(killed, "stage2")["resumed"]
    assert_same(killed, finished, "stage2")


@pytest.mark.slow
def test_prior_killed_resumes_to_the_same_bytes(killed, finished):
    killed.kill_stage("training.checkpoint.save_checkpoint", 2, "prior", *ARM)
    assert checkpoint_step(killed, "prior") == 8
    killed.stage("prior", *ARM)
    assert durations(killed, "prior")["resumed"]
    assert_same(killed, finished, "prior")


@pytest.mark.slow
def test_sample_killed_and_evaluate_repeat(killed, finished):
    killed.kill_stage("storage.shards.write_shard", 1, "sample", *ARM)
    killed.stage("sample", *ARM)
    assert_same(killed, finished, "sample")
    killed.stage("reference")
    assert_same(killed, finished, "reference", run="")
    killed.stage("evaluate", *ARM)
    assert_same(killed, finished, "evaluate")


@pytest.mark.slow
def test_dvc_killed_leaves_no_lock(finished, tmp_path):
    """The whole process group of a ``dvc repro`` dies in the middle of training; the next one resumes and finishes."""
    clone = finished.copy(tmp_path / "project", with_produced=True)
    clone.run("rm", "-r", "artifacts/stage2/dae-0", "metrics/stage2/dae-0.json")
    clone.change_params({"arms": {"dae": {"stage2": {"num_steps": 60}}}})
    process = clone.start("dvc", "repro", "--single-item", "stage2@dae-0")
    step = wait_for_checkpoint(clone, "stage2", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert step < 60
    log = clone.dvc("repro", "--single-item", "stage2@dae-0")
    assert "Running stage 'stage2@dae-0'" in log
    assert durations(clone, "stage2")["resumed"]
    assert json.loads((clone.folder / "metrics/stage2/dae-0.json").read_text())["num_steps"] == 60


def running_in(session: subprocess.Popen) -> dict[int, str]:
    """Process id -> command line of all that a command has started and that still runs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, state = (entry / "cmdline").read_text(), (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if os.getsid(int(entry.name)) == session.pid and state != "Z":
                    found[int(entry.name)] = command
            except (OSError, UnicodeDecodeError):  # it has just ended
                continue
    return found


def test_killed_commands_leave_no_process(killed):
    """Ray's workers end within seconds of the stage; its last agents notice after about half a minute."""
    deadline = time.monotonic() + 90
    while left := [command for process in killed.started for command in running_in(process).values()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
