"""Kills a stage at every file operation and has it run again. ``python -m tests.killing.every_operation CASE FOLDER``

Long stages start where they have computed everything and are about to fill their artifact. This process imports everything once
and computes nothing, so that it can fork: each run is a child.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import resume_key
import stage
from params import Params
from stage import Stage, execute
from storage.shards import write_manifest, write_shard
from tasks.encode import STAGE as ENCODE
from tasks.prior import STAGE as PRIOR
from tasks.sample import STAGE as SAMPLE
from tasks.shards import STAGE as SHARDS
from tests.export import runs
from tests.families import small_params
from tests.killing.sitecustomize import die_at
from tests.sealing import seal
from tests.tasks import finished_run

MAX_OPERATIONS = 1000
OLD = "of an earlier run"
LEFT_BEHIND = (".incoming", ".outgoing", ".discarded", ".lock", ".tmp")


@dataclass(frozen=True)
class Case:
    """A stage with inputs that ``write_inputs`` makes in a folder."""

    stage: Stage
    params: Params
    arm: str | None
    seed: int
    write_inputs: Callable[[Path], object]
    from_last_second: bool = False

    def run(self, root: Path) -> None:
        execute(self.stage, self.params, self.arm, self.seed, root)

    def targets(self, root: Path) -> list[Path]:
        run = f"{self.arm}-{self.seed}"
        return [root / template.format(run=run) for kind, template in self.stage.output_templates().items() if kind != "durations"]


def _toy(params, inputs, outputs) -> dict:
    (outputs.artifact / "part").mkdir()
    for name in ("first.txt", "part/second.txt"):
        (outputs.artifact / name).write_text(name)
    outputs.curves.write_text("new")
    return {"value": 1}


def _write_images(root: Path) -> None:
    (root / "data").mkdir()
    for number in range(8):
        Image.fromarray(np.full((20, 16, 3), 30 * number, np.uint8)).save(root / f"data/{number}.png")


def _write_encode_inputs(root: Path, family: str) -> None:
    pixels = torch.randint(256, (5, runs.SIZE, runs.SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = {"validation": pixels[:2], "train": pixels[2:]}
    entries = {}
    for split, images in parts.items():
        samples = ((f"{split}-{number}", image.numpy(), None) for number, image in enumerate(images))
        entries[split] = [write_shard(root / f"artifacts/shards/{split}-000000.tar", samples, "png")]
    write_manifest(root / "artifacts/shards", entries, runs.SIZE, "png", [])
    runs._write_autoencoder(root / "artifacts", runs.FAMILIES[family][0], pixels.permute(0, 3, 1, 2), 2)
    seal(root)


def _write_prior_inputs(root: Path) -> None:
    _write_encode_inputs(root, "transformer")
    execute(ENCODE, PARAMS, "dae", runs.SEED, root)


def _write_sample_inputs(root: Path) -> None:
    runs.write_run(root, "transformer")
    for name in ("artifacts/sample", "metrics/sample", "durations/sample"):
        shutil.rmtree(root / name)


def _shards_params() -> Params:
    dataset = {"source": "data", "num_validation_images": 2, "image_size": 16, "images_per_shard": 3}
    changes = {"dataset": dataset, "evaluation": {"num_images": 2, "kid_subset_size": 2, "num_grid_images": 2}}
    return small_params("vq", "transformer", "autoregressive", changes)


def _prior_params() -> Params:
    training = {"num_steps": 3, "batch_size": 2, "warmup_steps": 1, "validate_every_steps": 2}
    changes = {"prior": {"training": training}, "runtime": {"checkpoint_every_steps": 1, "log_every_steps": 1}}
    return small_params("vq", "transformer", "autoregressive", changes)


def _sample_params() -> Params:
    sampling = {"num_images": 6, "batch_size": 4, "images_per_shard": 4, "guidance_scale": 1.0, **runs.FAMILIES["transformer"][2]}
    return runs._params("transformer", False, sampling)


PARAMS = finished_run.small_params()
CASES = {
    "toy": Case(
        Stage("toy", _toy, sections=("freeze",), inputs={"data": "data"}, per_arm=False, has_curves=True),
        PARAMS, None, 0, _write_images,
    ),
    "shards": Case(SHARDS, _shards_params(), None, 0, _write_images),
    "encode": Case(ENCODE, PARAMS, "dae", runs.SEED, partial(_write_encode_inputs, family="transformer"), from_last_second=True),
    "encode_continuous": Case(ENCODE, PARAMS, "dae", runs.SEED, partial(_write_encode_inputs, family="dit"), from_last_second=True),
    "prior": Case(PRIOR, _prior_params(), "dae", runs.SEED, _write_prior_inputs),
    "sample": Case(SAMPLE, _sample_params(), "dae", runs.SEED, _write_sample_inputs, from_last_second=True),
}  # fmt: skip


def main() -> None:
    case, folder = CASES[sys.argv[1]], Path(sys.argv[2])
    code = resume_key.loaded_code()  # asked once: it and git take longer than all the rest
    resume_key.loaded_code, stage._code_version = lambda: code, lambda: "unknown"
    inputs = folder / "inputs"
    inputs.mkdir()
    assert _child(lambda: case.write_inputs(inputs)) == 0
    _import_what_a_run_imports(case, _fresh(folder / "first", inputs, case))
    if case.from_last_second:
        assert _killed(case, inputs, 1, part="/outputs/artifact/")
    undisturbed = _fresh(folder / "undisturbed", inputs, case)
    assert _child(lambda: case.run(undisturbed)) == 0
    wanted = _contents(case, undisturbed)
    assert not _left_behind(undisturbed), _left_behind(undisturbed)

    halves = [_start(lambda first=first: _kill_at_every_second(case, folder, wanted, first)) for first in (1, 2)]  # for two cores
    assert [_wait(pid) for pid in halves] == [0, 0]
    num_operations = sum(int((folder / f"kills-{first}").read_text()) for first in (1, 2))
    if case.from_last_second:
        print(f"operations: {num_operations}")
        return
    again = _fresh(folder / "killed again and again", inputs, case)
    num_kills = 0
    while _killed(case, again, num_kills + 1):
        num_kills += 1
    _require_finished(case, again, wanted, f"after {num_kills} kills, each one operation later")
    print(f"operations: {num_operations}, and {num_kills} kills of one folder")


def _kill_at_every_second(case: Case, folder: Path, wanted: dict, first: int) -> None:
    """Every second operation from the first; a folder of its own for each."""
    for num_kills, number in enumerate(range(first, MAX_OPERATIONS, 2)):
        root = _fresh(folder / f"killed-{number}", folder / "inputs", case)
        old = _contents(case, root)
        if not _killed(case, root, number):
            (folder / f"kills-{first}").write_text(str(num_kills))
            return
        _require_whole(case, root, old, wanted, number)
        _require_finished(case, root, wanted, f"after a kill at operation {number}")
        shutil.rmtree(root)


def _import_what_a_run_imports(case: Case, root: Path) -> None:
    """Or each child would do it again, for seconds."""
    listing = root / "modules.json"

    def run() -> None:
        case.run(root)
        listing.write_text(json.dumps(sorted(sys.modules)))

    assert _child(run) == 0
    for name in json.loads(listing.read_text()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _fresh(root: Path, inputs: Path, case: Case) -> Path:
    """Inputs, and outputs of an earlier run."""
    shutil.copytree(inputs, root)
    for target in case.targets(root):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix:
            target.write_text(OLD)
        else:
            target.mkdir()
            (target / "old.txt").write_text(OLD)
    return root


def _killed(case: Case, root: Path, number: int, part: str = "") -> bool:
    def run() -> None:
        die_at(str(root), number, part=part)
        case.run(root)

    status = _child(run)
    assert status in (0, -signal.SIGKILL), f"operation {number}: exit status {status}"
    return status != 0


def _child(run: Callable[[], object]) -> int:
    return _wait(_start(run))


def _start(run: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return pid


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _require_whole(case: Case, root: Path, old: dict, wanted: dict, number: int) -> None:
    """Between two renames an output may be away; else it is the old one or the new one."""
    found = _contents(case, root)
    for target, files in found.items():
        assert not files or files in (old[target], wanted[target]), f"operation {number}: {target} is neither old nor new: {list(files)}"


def _require_finished(case: Case, root: Path, wanted: dict, when: str) -> None:
    assert _child(lambda: case.run(root)) == 0, f"{when}: the stage fails"
    assert _contents(case, root) == wanted, f"{when}: other bytes"
    assert not _left_behind(root), f"{when}: left behind {_left_behind(root)}"


def _contents(case: Case, root: Path) -> dict[str, dict[str, bytes]]:
    """Per output the bytes of its files."""
    contents = {}
    for target in case.targets(root):
        files = [path for path in (target, *target.rglob("*")) if path.is_file()]
        contents[str(target.relative_to(root))] = {str(path.relative_to(root)): path.read_bytes() for path in files}
    return contents


def _left_behind(root: Path) -> list[str]:
    in_scratch = [path for path in (root / ".scratch").glob("*/*/*")]
    return [str(path.relative_to(root)) for path in [*in_scratch, *(p for p in root.rglob("*") if p.name.endswith(LEFT_BEHIND))]]


if __name__ == "__main__":
    main()
