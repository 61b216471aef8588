"""The shards stage from end to end: images in, verified shards out, whatever happens on the way."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from errors import PipelineError
from ingest.preparation import Preparation
from params import Params
from stage import execute
from storage.shards import ShardDataset
from tasks.shards import STAGE

PROJECT = Path(__file__).parents[2]


def make_params(source, num_threads: int = 1, **dataset) -> Params:
    tree = yaml.safe_load((PROJECT / "params.yaml").read_text())
    small = {"split": "random", "num_validation_images": 5, "image_size": 8, "images_per_shard": 4, "max_skipped_fraction": 0.1}
    tree["dataset"] |= {"source": str(source), **small, **dataset}
    tree["reconstruction_loss"]["discriminator_num_layers"] = 1  # as many as 8 pixels take
    tree["runtime"]["num_threads"] = num_threads
    tree["evaluation"] |= {"num_images": 2, "kid_subset_size": 2}  # no more than there are validation images
    return Params.model_validate(tree)


def make(source, root: Path, **options) -> dict:
    return execute(STAGE, make_params(source, **options), None, 0, root=root)


def fill(folder: Path, names, image_format: str = "PNG", size=(8, 8)) -> Path:
    """Images of noise, each a function of its name."""
    for name in names:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, image_format)
    return folder


def numbered(number: int, folder: str = "", extension: str = "png") -> list[str]:
    return [f"{folder}{index:03d}.{extension}" for index in range(number)]


def outputs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "artifacts/shards").iterdir())}


def manifest(root: Path) -> dict:
    return json.loads((root / "artifacts/shards/manifest.json").read_text())


def datasets(root: Path) -> dict[str, ShardDataset]:
    return {split: ShardDataset(root / "artifacts/shards", split) for split in ("train", "validation")}


def path_of(key: str) -> str:
    return key.replace("+", "/").replace(",", ".")


def test_png_folder_arrives_pixel_by_pixel(tmp_path):
    source = fill(tmp_path / "in", numbered(20))
    metrics = make(source, tmp_path)
    made = datasets(tmp_path)
    assert {split: len(dataset) for split, dataset in made.items()} == {"train": 15, "validation": 5}
    assert sorted(path_of(key) for dataset in made.values() for key in dataset.keys) == numbered(20)
    for dataset in made.values():
        for index, key in enumerate(dataset.keys):
            pixels = np.asarray(Image.open(source / path_of(key)))
            assert (dataset[index][0].permute(1, 2, 0).numpy() == pixels).all()
    num_bytes = sum(len(data) for name, data in outputs(tmp_path).items() if name.endswith(".tar"))
    assert metrics == {"num_train_images": 15, "num_validation_images": 5, "num_skipped": 0, "num_classes": 0, "num_bytes": num_bytes}


def test_jpeg_folder_keeps_its_labels(tmp_path):
    classes = ["ant", "bee", "cow"]
    source = fill(tmp_path / "in", [name for c in classes for name in numbered(8, f"{c}/", "jpg")], "JPEG", (12, 9))
    assert make(source, tmp_path)["num_classes"] == 3
    assert manifest(tmp_path)["classes"] == classes
    for dataset in datasets(tmp_path).values():
        for key, label in zip(dataset.keys, dataset.labels, strict=True):
            assert path_of(key).startswith(classes[label] + "/")
    assert datasets(tmp_path)["train"].labels[:8] != sorted(datasets(tmp_path)["train"].labels[:8])  # classes are mixed


def test_two_runs_and_any_number_of_workers_make_the_same_bytes(tmp_path):
    source = fill(tmp_path / "in", numbered(70), size=(9, 13))
    for name, num_threads in (("one", 1), ("two", 2)):
        make(source, tmp_path / name, num_threads=num_threads)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    assert (tmp_path / "one/metrics/shards.json").read_bytes() == (tmp_path / "two/metrics/shards.json").read_bytes()


def test_manifest_tells_the_truth(tmp_path):
    source = fill(tmp_path / "in", numbered(20))
    (source / "notes.txt").write_text("x")
    make(source, tmp_path)
    made = manifest(tmp_path)
    assert made["source"] == {"kind": "folder", "path": str(source)}
    assert made["num_found"] == 20 and made["ignored"] == {".txt files": 1} and made["dataset"]["images_per_shard"] == 4
    assert [entry["num_images"] for entry in made["splits"]["train"]["shards"]] == [4, 4, 4, 3]
    assert [entry["num_images"] for entry in made["splits"]["validation"]["shards"]] == [4, 1]
    for split in made["splits"].values():
        for entry in split["shards"]:
            data = outputs(tmp_path)[entry["name"]]
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["num_bytes"])


def test_held_out_images_depend_on_their_names_alone(tmp_path):
    make(fill(tmp_path / "in", numbered(20)), tmp_path / "one")
    before = datasets(tmp_path / "one")["validation"].keys
    smallest = sorted((name.replace(".", ",") for name in numbered(20)), key=lambda key: hashlib.sha256(key.encode()).digest())[:5]
    assert before == smallest
    make(fill(tmp_path / "in", ["extra.png"]), tmp_path / "two")
    assert len(set(datasets(tmp_path / "two")["validation"].keys) & set(before)) >= 4


def test_split_folders_stay_apart(tmp_path):
    train, validation = [f"train/{c}/{i}.png" for c in "ab" for i in range(6)], ["validation/b/0.png", "validation/b/1.png"]
    make(fill(tmp_path / "in", train + validation), tmp_path, split="folders")
    made = datasets(tmp_path)
    assert sorted(map(path_of, made["train"].keys)) == train and sorted(map(path_of, made["validation"].keys)) == validation
    assert made["validation"].labels == [1, 1]


@pytest.mark.parametrize("is_labelled", [False, True])
def test_class_conditional_needs_labels_before_any_work(tmp_path, is_labelled):
    names = [*numbered(4, "a/"), *numbered(4, "b/")] if is_labelled else numbered(8)
    params = make_params(fill(tmp_path / "data", names))
    params = params.model_copy(update={"prior": params.prior.model_copy(update={"class_conditional": True})})
    if is_labelled:
        execute(STAGE, params, None, 0, root=tmp_path)
        assert manifest(tmp_path)["classes"] == ["a", "b"]
        return
    with pytest.raises(PipelineError, match=r"data: prior.class_conditional is true, but its images have no labels; put them into"):
        execute(STAGE, params, None, 0, root=tmp_path)


def test_skipped_validation_image_takes_none_from_training(tmp_path):
    train, validation = [f"train/{i}.png" for i in range(9)], [f"validation/{i}.png" for i in range(6)]
    source = fill(tmp_path / "in", train + validation)
    (source / "validation/3.png").write_bytes(b"")
    make(source, tmp_path, split="folders")
    assert {split: len(dataset) for split, dataset in datasets(tmp_path).items()} == {"train": 9, "validation": 5}


def test_unreadable_images_are_skipped_counted_and_named(tmp_path, capfd):
    source = fill(tmp_path / "in", numbered(40))
    whole = (source / "000.png").read_bytes()
    for name, data in (("000.png", b""), ("001.png", b"no image"), ("002.png", whole[:100])):
        (source / name).write_bytes(data)
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    metrics = make(source, tmp_path)
    assert (metrics["num_train_images"], metrics["num_validation_images"], metrics["num_skipped"]) == (32, 5, 4)
    reasons = {skip["name"]: skip["reason"] for skip in manifest(tmp_path)["skipped"]}
    assert reasons.keys() == {"000.png", "001.png", "002.png", "gone.png"}
    assert reasons["000.png"] == "empty file" and "not an image" in reasons["001.png"] and "No such file" in reasons["gone.png"]
    assert "skipped 4 of 41 images" in capfd.readouterr().err


def test_too_large_image_is_skipped_by_the_parameter(tmp_path):
    source = fill(fill(tmp_path / "in", numbered(19)), ["large.png"], size=(30, 30))
    make(source, tmp_path, max_image_pixels=899)
    assert manifest(tmp_path)["skipped"] == [{"name": "large.png", "reason": "30x30 pixels, more than dataset.max_image_pixels 899"}]


def failure(source, root: Path, **options) -> str:
    with pytest.raises(PipelineError) as error:
        make(source, root, **options)
    assert not (root / "artifacts/shards").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_too_many_skipped_images_stop_the_stage(tmp_path):
    source = fill(tmp_path / "in", numbered(20))
    for name in numbered(3):
        (source / name).write_bytes(b"")
    message = failure(source, tmp_path)
    assert "3 of 20 images (15.00%) cannot be used so far, more than dataset.max_skipped_fraction 10.00%" in message
    assert "001.png (empty file)" in message
    assert make(source, tmp_path, max_skipped_fraction=0.15)["num_skipped"] == 3  # the share itself is allowed


@pytest.mark.parametrize("number", [5, 6])
def test_an_image_must_be_left_for_training(tmp_path, number):
    source = fill(tmp_path / "in", numbered(number))
    if number == 5:
        assert "num_validation_images is 5, but there are only 5 images" in failure(source, tmp_path)
    else:
        (source / "003.png").write_bytes(b"")
        assert "only 0 readable images are left for train; 1 were skipped" in failure(source, tmp_path, max_skipped_fraction=1.0)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("num_prepared", [2, 9, 14, 33])  # inside the first shard, on a boundary's far side, in train, near the end
def test_killed_stage_resumes_with_the_next_shard_and_the_same_bytes(tmp_path, monkeypatch, num_prepared):
    source = fill(tmp_path / "in", numbered(36))
    for name in ("007.png", "019.png"):
        (source / name).write_bytes(b"broken")
    make(source, tmp_path / "whole")

    calls = []
    prepare = Preparation.prepare

    def prepare_some(self, item):
        calls.append(item.key)
        if len(calls) > num_prepared:
            raise Killed
        return prepare(self, item)

    monkeypatch.setattr(Preparation, "prepare", prepare_some)
    with pytest.raises(Killed):
        make(source, tmp_path / "killed")
    before = calls[:num_prepared]
    calls.clear()
    monkeypatch.setattr(Preparation, "prepare", lambda self, item: calls.append(item.key) or prepare(self, item))
    make(source, tmp_path / "killed")
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    repeated = set(before) & set(calls)
    assert len(repeated) <= 5  # at most the shard that was being written, and what was skipped in it


def test_avatars_recipe(tmp_path):
    (tmp_path / "faces.yaml").write_text("{recipe: avatars, num_images: 12, seed: 0, draw_size: 32}")
    make(tmp_path / "faces.yaml", tmp_path, image_size=16)
    images = datasets(tmp_path)["train"].images(range(7))
    assert images.shape == (7, 3, 16, 16) and images.float().std() > 20
    assert manifest(tmp_path)["source"] == {"kind": "recipe", "path": str(tmp_path / "faces.yaml"), "avatars_seed": 0}


def test_shards_of_one_run_are_a_source_for_the_next(tmp_path):
    source = fill(tmp_path / "in", [name for c in ("ant", "bee") for name in numbered(10, f"{c}/")])
    make(source, tmp_path / "one")
    make(tmp_path / "one/artifacts/shards", tmp_path / "two", split="folders")
    one, two = datasets(tmp_path / "one"), datasets(tmp_path / "two")
    for split in one:
        found = {key.removeprefix(f"{split}+").replace("=2B", "+").replace("=2C", ","): i for i, key in enumerate(two[split].keys)}
        for index, key in enumerate(one[split].keys):
            assert (one[split][index][0] == two[split][found[key]][0]).all() and one[split].labels[index] == two[split].labels[found[key]]


def test_worker_that_is_killed_ends_the_stage_with_one_line(tmp_path, monkeypatch):
    source = fill(tmp_path / "in", numbered(70))
    monkeypatch.setattr("ingest.preparation.ProcessPoolExecutor.submit", _broken)
    assert "worker process was ended from outside" in failure(source, tmp_path, num_threads=2)


def _broken(*_):
    from concurrent.futures.process import BrokenProcessPool

    raise BrokenProcessPool
