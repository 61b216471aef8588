"""Ray without a cluster, and on a real one of two nodes that loses one: what listens, what is computed, what the user reads.

All nodes are on loopback, of one CPU each: a worker of two then needs the other node.
"""

import errno
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from errors import PipelineError, explain_os_error
from models.autoencoder import Decoder
from models.bottleneck import build_bottleneck
from storage.decoders import save_decoder
from storage.frozen import load_frozen
from tests.clone import PROJECT, SMALL, merged
from tests.sealing import seal
from tests.training.tiny import SIZE, tiny_params, write_tiny_latents
from training import cluster
from training.autoencoder import autoencoder_config, bottleneck_config

pytestmark = pytest.mark.timeout(400)

ARM = ("--arm", "dae", "--seed", "0")
NUM_STEPS = 300
PARAMS = {
    "prior": {
        "num_layers": 1,
        "width": 16,
        "training": {"num_steps": NUM_STEPS, "validate_every_steps": 100, "num_ray_workers": 2},
    },
    "encode": {"batch_size": 5},
    "sample": {"num_images": 60, "batch_size": 10, "images_per_shard": 20},
    "runtime": {"device": "cpu", "checkpoint_every_steps": 20},
}
# `ray start`, but that 127.0.0.1 stays 127.0.0.1: it would put the machine's other address in its place and listen everywhere.
RAY_ON_LOOPBACK = """
import ray.scripts.scripts
ray._private.services.resolve_ip_for_localhost = lambda host: host
ray.scripts.scripts.main()
"""
NODE_SETTINGS = {"GLOO_SOCKET_IFNAME": "lo", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
NODE_OPTIONS = ("--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", f"--object-store-memory={100 << 20}", "--disable-usage-stats")


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def names(processes: list[psutil.Process]) -> str:
    lines = []
    for process in processes:
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return "\n".join(lines)


def kill(process: subprocess.Popen) -> None:
    """kill -9 of a whole process tree, as if its machine had lost power."""
    for one in family(psutil.Process(process.pid)) if process.poll() is None else []:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


class Cluster:
    """Ray nodes on loopback, each a `ray start --block` of its own."""

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.folder, self.address = folder, f"127.0.0.1:{self.port}"
        self.settings = {**NODE_SETTINGS, "RAY_ADDRESS": self.address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        self.nodes: list[subprocess.Popen] = []

    def start_node(self) -> None:
        """Start the head, or one more node, and wait until it has joined."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        environment = {**os.environ, **NODE_SETTINGS, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1" if self.nodes else "0"}
        options = (f"--address={self.address}",) if self.nodes else ("--head", f"--port={self.port}", "--include-dashboard=false")
        options += (*NODE_OPTIONS, f"--temp-dir={self.folder / str(len(self.nodes))}")
        command = [sys.executable, "-c", RAY_ON_LOOPBACK, "start", *options]
        with log.open("w") as file:
            self.nodes.append(subprocess.Popen(command, env=environment, cwd=self.folder, stdout=file, stderr=file, start_new_session=True))
        while "Ray runtime started" not in log.read_text():
            assert self.nodes[-1].poll() is None, log.read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Ray's sockets are below it, and their paths must be short
    nodes = Cluster(folder)
    try:
        nodes.start_node()
        nodes.start_node()
        yield nodes
    finally:
        for node in reversed(nodes.nodes):
            kill(node)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder in which encode, prior and sample can run."""
    root = tmp_path_factory.mktemp("prepared")
    params = tiny_params()
    made = write_tiny_latents(root, params)
    for path, target in ((made.shards, "shards"), (made.freeze, "freeze/dae-0")):
        (root / "artifacts" / target).parent.mkdir(parents=True, exist_ok=True)
        path.rename(root / "artifacts" / target)
    bottleneck = build_bottleneck(bottleneck_config(params.bottleneck, params.arm.stage1))
    config = autoencoder_config(params.autoencoder, SIZE, bottleneck)
    torch.manual_seed(0)
    save_decoder(root / "artifacts/stage2/dae-0", config, Decoder(config), load_frozen(root / "artifacts/freeze/dae-0").sha256)
    seal(root)
    tree = merged(merged(yaml.safe_load((PROJECT / "params.yaml").read_text()), SMALL), PARAMS)
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    return root


def start_stage(name: str, root: Path, settings: dict[str, str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_WAIT_POLICY": "passive", **settings}
    command = [sys.executable, "-m", f"tasks.{name}", *ARM]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_stage(name: str, root: Path, settings: dict[str, str], expect: int = 0) -> str:
    process = start_stage(name, root, settings)
    output, _ = process.communicate()
    assert process.returncode == expect, output
    return output


def copy(source: Path, target: Path, stage: str, changes: dict) -> Path:
    """A copy of a folder with other parameters, and without what the stage wrote there."""
    shutil.copytree(source, target)
    for name in written(target, stage):
        (target / name).unlink()
    tree = yaml.safe_load((target / "params.yaml").read_text())
    (target / "params.yaml").write_text(yaml.safe_dump(merged(tree, changes)))
    return target


def written(root: Path, stage: str) -> dict[str, bytes]:
    """Everything a stage wrote, but how long it took."""
    found = [path for folder in ("artifacts", "metrics", "curves") for path in root.glob(f"{folder}/{stage}/**/*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def wait_for_checkpoint(root: Path, process: subprocess.Popen) -> int:
    """Wait until the prior is in training; return the step of its checkpoint."""
    while not (found := list((root / ".scratch/prior").rglob("checkpoint-*.pt"))):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return max(int(path.name.split("-")[1]) for path in found)


LOCAL = {"RAY_ADDRESS": "", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "GLOO_SOCKET_IFNAME": ""}


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> SimpleNamespace:
    """The prior on two local Ray workers, what then ran and listened, and what they left in the folder for temporary files."""
    root = copy(prepared, tmp_path_factory.mktemp("trained") / "root", "prior", {})
    run_stage("encode", root, LOCAL)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        process = start_stage("prior", root, LOCAL | {"TMPDIR": temporary})
        wait_for_checkpoint(root, process)
        processes = family(psutil.Process(process.pid))
        running = names(processes)
        listening = [entry.laddr for one in processes for entry in one.net_connections("inet") if entry.status == psutil.CONN_LISTEN]
        output, _ = process.communicate()
        assert process.returncode == 0, output
        left = list(Path(temporary).iterdir())
    return SimpleNamespace(root=root, running=running, listening=listening, left=left)


@pytest.fixture(scope="module")
def undisturbed(trained) -> SimpleNamespace:
    """All three stages without a cluster: the prior on two local Ray workers, the rest in process."""
    run_stage("sample", trained.root, LOCAL)
    return trained


def test_without_a_cluster_everything_listens_on_loopback_only(trained):
    assert all(part in trained.running for part in ("gcs_server", "raylet/raylet"))
    assert trained.running.count("RayTrainWorker") >= 2
    assert len(trained.listening) > 5
    assert {address.ip.removeprefix("::ffff:") for address in trained.listening} == {"127.0.0.1"}


def test_ray_leaves_no_temporary_files(trained):
    assert trained.left == []


@pytest.mark.slow
def test_killed_stages_and_workers_resume_to_the_same_bytes_and_leave_no_process(trained, tmp_path):
    """The stage dies, then in the next run one of its two workers. Ray's last agents notice after about half a minute."""
    root = copy(trained.root, tmp_path / "root", "prior", {})
    first = start_stage("prior", root, LOCAL)
    step = wait_for_checkpoint(root, first)
    started = family(psutil.Process(first.pid))
    first.kill()
    first.wait()
    assert 0 < step < NUM_STEPS

    second = start_stage("prior", root, LOCAL)
    while not (workers := [one for one in family(psutil.Process(second.pid)) if "RayTrainWorker" in names([one])]):
        assert second.poll() is None, second.stdout.read()
        time.sleep(0.02)
    while wait_for_checkpoint(root, second) <= step:
        time.sleep(0.02)
    started += family(psutil.Process(second.pid))
    workers[-1].kill()
    output, _ = second.communicate()
    assert second.returncode == 0, output
    (duration,) = (root / "durations/prior").iterdir()
    assert json.loads(duration.read_text())["resumed"]
    assert written(root, "prior") == written(trained.root, "prior")
    _, left = psutil.wait_procs(started, timeout=90)
    assert not left, names(left)


@pytest.mark.slow
def test_a_lost_node_is_waited_for_and_training_goes_on_to_the_same_bytes(undisturbed, two_nodes, tmp_path):
    root = copy(undisturbed.root, tmp_path / "root", "prior", {})
    head, worker = two_nodes.nodes
    process = start_stage("prior", root, two_nodes.settings)
    step = wait_for_checkpoint(root, process)
    assert all("RayTrainWorker" in names(family(psutil.Process(node.pid))) for node in (head, worker)), "both nodes train"
    kill(worker)
    assert 0 < step < NUM_STEPS
    said = ""
    while "a node was lost" not in said:
        said += process.stdout.readline()
        assert process.poll() is None, said
    two_nodes.start_node()
    output, _ = process.communicate()
    assert process.returncode == 0, said + output
    assert "num_ray_workers: 2: a node was lost: needs 2 CPU, the cluster has 1; waiting up to 300 s" in said
    assert written(root, "prior") == written(undisturbed.root, "prior")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encode", "sample"])
def test_tasks_on_a_cluster_write_what_one_process_writes(stage, undisturbed, two_nodes, tmp_path):
    root = copy(undisturbed.root, tmp_path / "root", stage, {"runtime": {"num_ray_tasks": 2}})
    run_stage(stage, root, two_nodes.settings)
    assert written(root, stage) == written(undisturbed.root, stage)


@pytest.mark.slow
def test_more_workers_than_cpus_is_one_line(undisturbed, two_nodes, tmp_path):
    root = copy(undisturbed.root, tmp_path / "root", "prior", {"prior": {"training": {"num_ray_workers": 8}}})
    output = run_stage("prior", root, two_nodes.settings, expect=1)
    assert output.splitlines() == [
        "error: prior: num_ray_workers: 8: needs 8 CPU, the cluster has 2; ask for fewer "
        "(num_ray_workers: auto takes what there is), or start the nodes first"
    ]


def test_an_address_where_nothing_answers_is_one_line(trained):
    [line] = run_stage("prior", trained.root, {"RAY_ADDRESS": "127.0.0.1:1"}, expect=1).splitlines()
    assert line.startswith("error: prior: RAY_ADDRESS=127.0.0.1:1: nothing answers there ([Errno 111] Connection refused); start the")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", ":6379"])
def test_addresses_of_another_form_are_refused(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PipelineError, match=r"write the head node's address as host:port"), cluster.ray_session(1):
        pass


class _RayTaskError(Exception):
    def __init__(self, cause: Exception):
        super().__init__(f"ray::encode_shard() (pid=1)\nTraceback: {cause}")
        self.cause = cause


@pytest.mark.parametrize(
    "cause", [PipelineError("one line"), OSError(errno.ENOSPC, "No space left on device", "/disk/x"), ValueError("a bug")]
)
def test_what_a_task_raises_for_the_user_arrives_as_it_was_raised(cause):
    def get(reference):
        raise _RayTaskError(pickle.loads(pickle.dumps(cause)))

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=_RayTaskError, RayError=RuntimeError))
    with pytest.raises(_RayTaskError if isinstance(cause, ValueError) else type(cause)) as raised:
        cluster._unwrap(ray, None)
    if isinstance(cause, OSError):
        assert explain_os_error(raised.value) == explain_os_error(cause)


def test_waiting_for_a_lost_node_has_an_end(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(cluster.time, "monotonic", lambda: next(clock))
    nodes = {"CPU": 2.0}
    watch = cluster.ResourceWatch(SimpleNamespace(cluster_resources=lambda: nodes), {"CPU": 2}, "num_ray_workers: 2")
    watch.check()
    nodes["CPU"] = 1.0
    watch.check()
    watch.check()
    nodes["CPU"] = 2.0
    watch.check()
    assert len(capsys.readouterr().err.splitlines()) == 1
    del nodes["CPU"]
    with pytest.raises(PipelineError, match=r"needs 2 CPU, the cluster has 0, and none joined within 300 s"):
        for _ in range(7):
            watch.check()
