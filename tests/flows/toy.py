"""A small project around this flows/ folder: stages that sleep, with checkpoints, so that runs can be watched, ended and resumed."""

import shutil
from pathlib import Path

import psutil

from tests.clone import PROJECT, Clone

IGNORED = "/out/\n/metrics/\n/durations/\n/finished.txt\n/report/\n/.scratch/\n/.prefect/\n__pycache__/\n"

# step.py NAME TENTHS OUT INPUT...: TENTHS times a tenth of a second, and a checkpoint after each.
STEP = """
import json, os, pathlib, sys, time
import announcing
from progress import progress_bar
name, tenths, out, *inputs = sys.argv[1:]
announcing.announce_stage(pathlib.Path("."))
checkpoint = pathlib.Path(".scratch") / (name + ".txt")
duration = pathlib.Path("durations", out.removeprefix("out/") + ".json")
for path in (checkpoint, pathlib.Path(out), pathlib.Path("metrics/x"), duration):
    path.parent.mkdir(parents=True, exist_ok=True)
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
if start:
    print("resumed at", start, flush=True)
live = pathlib.Path(os.environ.get("DAE_LIVE", ".scratch/live"), out.removeprefix("out/").replace("-", "/", 1))
bar = progress_bar(int(tenths), name, "step", start)
for tenth in range(start, int(tenths)):
    time.sleep(0.1)
    bar.update()
    shown = pathlib.Path(os.environ.get("DAE_SCRATCH", ".scratch"), "shown")
    if tenth == 2 and shown.exists():
        import shutil
        shutil.copytree(shown, live, dirs_exist_ok=True)
    pathlib.Path(str(checkpoint) + ".tmp").write_text(str(tenth + 1))
    os.replace(str(checkpoint) + ".tmp", checkpoint)
    order = pathlib.Path("do-" + name)
    if tenth >= 3 and order.exists():
        what = order.read_text()
        if what == "die once":
            order.unlink()
        sys.exit(what if what.startswith("error:") else "it broke")
bar.close()
checkpoint.unlink(missing_ok=True)
pathlib.Path(out).write_text(name + tenths + "".join(pathlib.Path(path).read_text() for path in inputs))
pathlib.Path("metrics", name + ".json").write_text(json.dumps({"tenths": int(tenths), "nested": {"value": 0.5}}))
duration.write_text(json.dumps({"wall_seconds": int(tenths) / 10, "resumed": start > 0}))
with open("finished.txt", "a") as finished:
    finished.write(name + "\\n")
if name == "report":
    from PIL import Image
    Image.new("RGB", (8, 8), (200, 0, 0)).save("report/grid.png")
    summary = {"arms": {"a": {"mean": {"fd": 12.5}}}}
    if pathlib.Path("answers.json").exists():
        import yaml
        seeds = yaml.safe_load(pathlib.Path("params.yaml").read_text())["experiment"]["seeds"]
        answer = json.loads(pathlib.Path("answers.json").read_text()).get(str(len(seeds)), "cannot tell yet")
        look = next((look for look in (3, 5, 8) if look > len(seeds)), None)
        verdict = {"answer": answer, "headline": f"{answer}, by {len(seeds)} seeds", "next_look": look, "is_testable": True}
        verdict["is_final"] = answer == "decouple"
        summary |= {"seeds": seeds, "verdict": verdict, "gates": []}
    pathlib.Path("report/summary.json").write_text(json.dumps(summary))
"""

DVC_YAML = """
stages:
  shards:
    cmd: python step.py shards 1 out/shards
    deps: [step.py]
    outs: [out/shards]
    metrics: [metrics/shards.json]
  stage1:
    matrix: {arm: [a, b]}
    cmd: python step.py stage1-${item.arm} ${stage1.warmup_steps} out/stage1-${item.arm} out/shards
    deps: [out/shards]
    params: [stage1]
    outs: ["out/stage1-${item.arm}"]
    metrics: ["metrics/stage1-${item.arm}.json"]
    meta: {slot: compute, retries: 1, retry_delay_seconds: 0}
  prior:
    matrix: {arm: [a, b]}
    cmd: python step.py prior-${item.arm} 1 out/prior-${item.arm} out/stage1-${item.arm}
    deps: ["out/stage1-${item.arm}"]
    outs: ["out/prior-${item.arm}"]
    metrics: ["metrics/prior-${item.arm}.json"]
  report:
    cmd: python step.py report 1 report/text out/prior-a out/prior-b
    deps: [out/prior-a, out/prior-b]
    outs: [report]
    metrics: [metrics/report.json]
"""
# The same with seeds, and a report whose verdict is read from answers.json by the number of seeds.
STUDY_YAML = """
stages:
  shards:
    cmd: python step.py shards 1 out/shards
    deps: [step.py]
    outs: [out/shards, durations/shards.json]
    metrics: [metrics/shards.json]
  stage1:
    matrix: {arm: "${experiment.arms}", seed: "${experiment.seeds}"}
    cmd: python step.py stage1-${item.arm}-${item.seed} ${stage1.warmup_steps} out/stage1/${item.arm}-${item.seed} out/shards
    deps: [out/shards]
    params: [stage1]
    outs: ["out/stage1/${item.arm}-${item.seed}", "durations/stage1/${item.arm}-${item.seed}.json"]
    metrics: ["metrics/stage1-${item.arm}-${item.seed}.json"]
    meta: {slot: compute, retries: 1, retry_delay_seconds: 0}
  report:
    cmd: python step.py report 1 report/index.html
    deps: [out/stage1, answers.json]
    params: [experiment]
    outs: [report]
"""
STAGES = ("shards", "stage1@a", "stage1@b", "prior@a", "prior@b", "report")


class Toy(Clone):
    """One such project and what is done to it by hand."""

    def __init__(self, folder: Path, graph: str = DVC_YAML):
        super().__init__(folder)
        folder.mkdir(parents=True)
        shutil.copytree(PROJECT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
        checks = ("params.py", "sections.py", "kinds.py", "validation.py", "yaml_file.py", "source_check.py", "errors.py")
        said = ("announcing.py", "progress.py", "scratch.py", "stage_times.py")
        packages = ("reporting/__init__.py", "reporting/arms.py", "storage/__init__.py", "storage/files.py")
        for name in (*checks, *said, *packages, "params.yaml", "prefect.yaml", "sources/avatars.yaml"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
        (folder / "step.py").write_text(STEP)
        (folder / "dvc.yaml").write_text(graph)
        (folder / ".gitignore").write_text(IGNORED)
        self.run("git", "init", "--quiet")
        self.dvc("init", "--quiet")
        (folder / ".dvcignore").write_text(".scratch\n.prefect\n__pycache__\n")
        self.set_tenths(5)
        self.commit("start")
        for key, value in (("user.name", "test"), ("user.email", "test@localhost")):
            self.run("git", "config", key, value)

    def set_tenths(self, number: int) -> None:
        """How long each stage1 takes."""
        self.change_params({"stage1": {"warmup_steps": number}})

    def order(self, name: str, what: str) -> None:
        """What a step does half-way: ``die once``, ``die``, or print a line that starts with ``error:`` and exit."""
        (self.folder / f"do-{name}").write_text(what)

    def stages_running(self) -> list[psutil.Process]:
        """Processes of this project's stages."""
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            command = process.info["cmdline"] or []
            if "step.py" in command and str(process.info["cwd"]).startswith(str(self.folder)):
                found.append(process)
        return found
