"""Folders of images as sources: what is found, under which key and label, and what is refused in one line."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from errors import PipelineError
from ingest.items import safe_key
from ingest.preparation import Preparation
from ingest.sources import open_source


def put(root: Path, *paths: str) -> Path:
    """Write a tiny image of its own colour under each path (its format follows the extension)."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        extension = path.rpartition(".")[2].lower()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / path, {"jpg": "JPEG", "jpeg": "JPEG"}.get(extension, extension.upper()))
    return root


def refusal(path: Path, split: str = "random") -> str:
    with pytest.raises(PipelineError) as error:
        open_source(path, split)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


def test_subfolders_are_labels_in_sorted_order(tmp_path):
    source = open_source(put(tmp_path, "owl/1.png", "cat/1.png", "cat/deep/er/2.png", "Ant/x.jpg"), "random")
    assert source.kind == "folder" and source.classes == ["Ant", "cat", "owl"]
    labels = {item.name: item.label for item in source.splits["all"]}
    assert labels == {"Ant/x.jpg": 0, "cat/1.png": 1, "cat/deep/er/2.png": 1, "owl/1.png": 2}


def test_flat_folder_has_no_labels(tmp_path):
    source = open_source(put(tmp_path, "1.png", "2.png"), "random")
    assert source.classes == [] and [item.label for item in source.splits["all"]] == [None, None]


def test_reader_returns_the_bytes_of_the_file(tmp_path):
    source = open_source(put(tmp_path, "cat/1.png", "dog/2.png"), "random")
    for item in source.splits["all"]:
        assert source.reader.read(item) == ((tmp_path / item.name).read_bytes(), item.label)


def test_a_file_too_large_for_memory_is_skipped_by_its_size(tmp_path):
    source = open_source(put(tmp_path, "1.png"), "random")
    os.truncate(tmp_path / "1.png", 2**32 + 1)  # takes no room on the disk
    prepared = Preparation(source.reader, 8, "box", "center", "png", 10_000).prepare(source.splits["all"][0])
    assert prepared.reason == "4294967297 bytes, more than an image's file may have (4294967296)"


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_file_is_skipped_at_once(tmp_path, kind):
    source, path = open_source(put(tmp_path, "1.png"), "random"), tmp_path / "1.png"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        makers = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}
        makers.get(kind, lambda path: listener.bind(os.path.relpath(path)))(path)
        prepared = Preparation(source.reader, 8, "box", "center", "png", 10_000).prepare(source.splits["all"][0])
    assert prepared.image is None and prepared.reason.startswith(("not a file but a pipe", "cannot be read: "))


def test_split_folders_are_no_labels(tmp_path):
    source = open_source(put(tmp_path, "train/cat/1.png", "train/dog/1.png", "validation/dog/1.png"), "folders")
    assert source.classes == ["cat", "dog"]
    assert [(item.name, item.label) for item in source.splits["train"]] == [("train/cat/1.png", 0), ("train/dog/1.png", 1)]
    assert [(item.name, item.label) for item in source.splits["validation"]] == [("validation/dog/1.png", 1)]


def test_same_stem_with_other_extension_survives(tmp_path):
    source = open_source(put(tmp_path, "a.png", "a.jpg", "a.JPEG", "a.b.png"), "random")
    assert len({item.key for item in source.splits["all"]}) == 4


def test_other_files_are_ignored_and_counted(tmp_path):
    put(tmp_path, "cat/1.png", ".cache/2.png", "cat/._1.png")
    for name in (".DS_Store", "cat/Thumbs.db", "notes.txt", "more.TXT", "LICENSE"):
        (tmp_path / name).write_text("x")
    source = open_source(tmp_path, "random")
    assert [item.name for item in source.splits["all"]] == ["cat/1.png"]
    assert source.ignored == {"hidden folders": 1, "hidden files": 2, ".db files": 1, ".txt files": 2, "files without extension": 1}


def test_linked_files_are_images_and_linked_folders_are_refused(tmp_path):
    put(tmp_path, "elsewhere/1.png", "source/2.png")
    (tmp_path / "source/3.png").symlink_to(tmp_path / "elsewhere/1.png")
    source = open_source(tmp_path / "source", "random")
    assert [item.name for item in source.splits["all"]] == ["2.png", "3.png"]
    (tmp_path / "source/more").symlink_to(tmp_path / "elsewhere")
    assert "source/more: a link to a folder" in refusal(tmp_path / "source")


def test_missing_source(tmp_path):
    assert "dataset.source does not exist" in refusal(tmp_path / "nowhere")


def test_empty_source_says_what_was_there_instead(tmp_path):
    assert "no images and no tars found; check dataset.source" in refusal(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert "found (only 1 .txt files)" in refusal(tmp_path)


def test_a_file_that_is_no_recipe(tmp_path):
    assert "must be a recipe (.yaml)" in refusal(put(tmp_path, "1.png") / "1.png")


def test_images_beside_class_folders(tmp_path):
    assert "2 images such as 1.png are in no class folder" in refusal(put(tmp_path, "cat/1.png", "1.png", "2.png"))


def test_images_and_tars_together(tmp_path):
    put(tmp_path, "1.png")
    (tmp_path / "a.tar").write_bytes(b"")
    assert "both tars (a.tar) and images (1.png)" in refusal(tmp_path)


def test_divided_folder_with_random_split(tmp_path):
    put(tmp_path, "train/cat/1.png", "test/cat/1.png")
    assert "is divided into test and train; set dataset.split: folders" in refusal(tmp_path)


def test_undivided_folder_with_folders_split(tmp_path):
    assert "means train/ and validation/ and nothing else, but there is cat/1.png" in refusal(put(tmp_path, "cat/1.png"), "folders")


@pytest.mark.parametrize("name", ["val", "test"])
def test_other_names_of_the_validation_folder_are_explained(tmp_path, name):
    assert f"rename {name}/ to validation/" in refusal(put(tmp_path, "train/1.png", f"{name}/1.png"), "folders")


def test_missing_split_folder(tmp_path):
    assert "no images in validation/" in refusal(put(tmp_path, "train/1.png"), "folders")


def test_class_that_training_never_sees(tmp_path):
    put(tmp_path, "train/cat/1.png", "validation/Cat/1.png")
    assert "class 'Cat' is in validation but not in train" in refusal(tmp_path, "folders")


def test_keys_hold_only_what_webdataset_takes_and_never_collide():
    paths = ["a/b.png", "a+b.png", "a/b,png", "a=2Fb.png", "a.b/png", "A/b.png", "ä/b.png", "a b.png", "a/b.png "]
    paths += ["x" * 300, "x" * 299 + "y"]
    keys = [safe_key(path) for path in paths]
    assert len(set(keys)) == len(paths)
    for key in keys:
        assert key.isascii() and len(key) <= 90 and not set(key) & set("./ ")
    assert safe_key("cat/0001.jpg") == "cat+0001,jpg"


def test_file_names_that_are_no_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    put(tmp_path, "1.png")
    os.rename(tmp_path / "1.png", name)
    source = open_source(tmp_path, "random")
    (item,) = source.splits["all"]
    assert item.key == "=FF,png" and source.reader.read(item)[0].startswith(b"\x89PNG")
