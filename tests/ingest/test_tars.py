"""WebDataset tars as sources: labels, keys, and every broken tar refused in one line naming it."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from errors import PipelineError
from ingest.sources import open_source


def image_bytes(number: int, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(buffer, image_format)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar of exactly these members, however unwise their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def refusal(root: Path, split: str = "random") -> str:
    with pytest.raises(PipelineError) as error:
        open_source(root, split)
    text = str(error.value)
    assert "\n" not in text and str(root) in text
    return text


def test_tars_written_by_webdataset(tmp_path):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for index in range(3):
                writer.write({"__key__": f"{shard}/{index}", "png": image_bytes(10 * shard + index), "cls": index, "txt": "a caption"})
    source = open_source(tmp_path, "random")
    assert source.kind == "tars" and source.classes == ["0", "1", "2"] and source.ignored == {".txt members": 6}
    assert [item.label for item in source.splits["all"]] == [0, 1, 2, 0, 1, 2]
    assert len({item.key for item in source.splits["all"]}) == 6
    for item, number in zip(source.splits["all"], [0, 1, 2, 10, 11, 12], strict=True):
        assert source.reader.read(item) == (image_bytes(number), item.label)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([b"7", b"3"], ["3", "7"], [1, 0]),
        ([b"10", b"9"], ["9", "10"], [1, 0]),
        ([b"dog\n", b"cat"], ["cat", "dog"], [1, 0]),
    ],
)
def test_cls_members_hold_indices_or_names(tmp_path, labels, classes, expected):
    write_tar(tmp_path / "a.tar", {f"{i}.{e}": d for i, label in enumerate(labels) for e, d in (("cls", label), ("png", image_bytes(i)))})
    source = open_source(tmp_path, "random")
    assert source.classes == classes and [item.label for item in source.splits["all"]] == expected


@pytest.mark.parametrize(("key", "values", "classes"), [("label", [0, 1], ["0", "1"]), ("class", ["ant", "bee"], ["ant", "bee"])])
def test_json_members_hold_labels(tmp_path, key, values, classes):
    members = {}
    for index, value in enumerate(values):
        members[f"{index}.JPG"] = image_bytes(index, "JPEG")
        members[f"{index}.json"] = json.dumps({"caption": "x", key: value}).encode()
    write_tar(tmp_path / "a.tar", members)
    source = open_source(tmp_path, "random")
    assert source.classes == classes and [item.label for item in source.splits["all"]] == [0, 1]


@pytest.mark.parametrize("order", [1, -1])
def test_cls_counts_where_json_names_a_label_too(tmp_path, order):
    members = {"0.cls": b"4", "0.json": b'{"label": "cat"}', "0.png": image_bytes(0)}
    write_tar(tmp_path / "a.tar", dict(list(members.items())[::order]))
    assert open_source(tmp_path, "random").classes == ["4"]


def test_json_without_a_label_means_no_labels(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), "0.json": b'{"caption": "x"}'})
    source = open_source(tmp_path, "random")
    assert source.classes == [] and source.splits["all"][0].label is None


@pytest.mark.parametrize("names", [("train/0.tar", "validation/0.tar"), ("train-000.tar", "validation-000.tar")])
def test_splits_may_use_the_same_keys(tmp_path, names):
    for number, name in enumerate(names):
        write_tar(tmp_path / name, {"0.png": image_bytes(number), "0.cls": b"5"})
    source = open_source(tmp_path, "folders")
    train, validation = source.splits["train"][0], source.splits["validation"][0]
    assert train.key != validation.key and source.classes == ["5"]
    assert source.reader.read(train)[0] == image_bytes(0) and source.reader.read(validation)[0] == image_bytes(1)


def test_divided_tars_with_random_split(tmp_path):
    for name in ("train-0.tar", "validation-0.tar"):
        write_tar(tmp_path / name, {"0.png": image_bytes(0)})
    assert "is divided into train and validation; set dataset.split: folders" in refusal(tmp_path)


def test_tar_of_no_split(tmp_path):
    for name in ("train-0.tar", "validation-0.tar", "extra.tar"):
        write_tar(tmp_path / name, {"0.png": image_bytes(0)})
    assert "but there is extra.tar" in refusal(tmp_path, "folders")


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png"])
def test_unsafe_member_is_refused(tmp_path, name):
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), name: image_bytes(1)})
    text = refusal(tmp_path)
    assert "a.tar" in text and name in text


def test_link_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert "a.tar: member 0.png is a link" in refusal(tmp_path)


def test_duplicate_key_in_two_tars_names_both(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"0.png": image_bytes(0)})
    assert "key 0 is in both a.tar and b.tar" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["0.jpg", "./0.png"])
def test_two_images_of_one_key_in_a_tar_name_both(tmp_path, name):
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), name: image_bytes(0)})
    assert f"a.tar: 0.png and {name} have one key" in refusal(tmp_path)


@pytest.mark.parametrize("num_bytes", [0, 100, 600, 1024, 1024 + 512, 2048, 2048 + 100])
def test_truncated_tar_is_refused(tmp_path, num_bytes):  # each member is a header of 512 bytes and a block of data
    path = write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), "1.png": image_bytes(1)})
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert "a.tar: truncated or damaged tar" in refusal(tmp_path)


def test_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), "1.png": image_bytes(1)})
    data = bytearray(path.read_bytes())
    data[1024:1032] = b"\xff" * 8
    path.write_bytes(data)
    assert "a.tar: truncated or damaged tar" in refusal(tmp_path)


def test_compressed_tar_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(PipelineError, match=r"a\.tar\.gz: .*uncompress it first"):
        open_source(tmp_path, "random")


def test_tar_without_images(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.txt": b"x"})
    assert "no image (jpg, jpeg, png, webp) in a.tar; add some" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.cls": b"1"}, "1.png has no .cls or .json label while others have"),
        ({"0.cls": b"1", "1.cls": b"cat"}, "0.png has label 1 but a.tar: 1.png has 'cat'"),
        ({"0.json": b"{", "1.cls": b"1"}, "0.json: cannot be read as JSON"),
        ({"0.cls": b"\xff", "1.cls": b"1"}, "0.cls: cannot be read as a label"),
        ({"0.cls": b"", "1.cls": b"1"}, "0.cls: label '' is neither"),
        ({"0.json": b'{"label": -1}', "1.cls": b"1"}, "0.json: label -1 is neither"),
        ({"0.json": b'{"label": 1.5}', "1.cls": b"1"}, "0.json: label 1.5 is neither"),
        ({"0.json": b'{"label": true}', "1.cls": b"1"}, "0.json: label True is neither"),
        ({"0.cls": b"-1", "1.cls": b"cat"}, "0.cls: label -1 is neither"),
        ({"0.json": b'{"label": "-1"}', "1.cls": b"cat"}, "0.json: label -1 is neither"),
        ({"0.cls": b"9" * 5000, "1.cls": b"1"}, "0.cls: cannot be read as a label (Exceeds the limit"),
        ({"0.json": b"[" * 100_000, "1.cls": b"1"}, "0.json: cannot be read as JSON (maximum recursion depth"),
        ({"0.cls": b"cat\ndog", "1.cls": b"cat"}, r"0.cls: label 'cat\ndog' is neither"),
        ({"0.json": b'{"label": "\\ud800"}', "1.cls": b"cat"}, r"0.json: label '\ud800' is neither"),
        ({"0.cls": b"1", "./0.cls": b"2", "1.cls": b"1"}, "./0.cls is there twice"),
    ],
)
def test_contradicting_labels_are_refused(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), "1.png": image_bytes(1), **members})
    text = refusal(tmp_path)
    assert message in text and "a.tar" in text


def test_label_without_an_image_is_counted(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0), "0.cls": b"1", "1.cls": b"1"})
    assert open_source(tmp_path, "random").ignored == {"labels without an image": 1}


@pytest.mark.parametrize("name", [".png", "deep/.png", "._0.png"])
def test_names_without_a_key_are_no_samples(tmp_path, name):  # as for webdataset; macOS adds files like the last one
    write_tar(tmp_path / "a.tar", {name: image_bytes(0), "0.png": image_bytes(1)})
    source = open_source(tmp_path, "random")
    assert [item.key for item in source.splits["all"]] == ["0"] and source.ignored.total() == 1


def test_a_name_of_two_lines_is_one_line_in_a_message(tmp_path):
    write_tar(tmp_path / "a.tar", {"../x\ny.png": image_bytes(0)})
    assert r"member ../x\ny.png has an absolute path or leaves" in refusal(tmp_path)


def test_tars_joined_into_one_file_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0)})
    path.write_bytes(path.read_bytes() + write_tar(tmp_path / "b.tar", {"1.png": image_bytes(1)}).read_bytes())
    assert "a.tar: goes on after its end, as tars do that were joined by cat" in refusal(tmp_path)


def test_a_member_of_an_unknown_type_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.size = b"Z", 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert "a.tar: member 0.png is a link, a device, sparse or of an unknown type" in refusal(tmp_path)


def test_a_size_that_no_file_can_have_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": image_bytes(0)})
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + b"\x7f" * 11  # GNU's binary sizes
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert "a.tar: truncated or damaged tar" in refusal(tmp_path)


def test_a_tar_that_is_no_file_is_named(tmp_path):
    (tmp_path / "a.tar").symlink_to("nowhere.tar")
    assert "a.tar: is no file, or a link that leads to none; remove it" in refusal(tmp_path)
    (tmp_path / "a.tar").unlink()
    os.mkfifo(tmp_path / "a.tar")
    assert "a.tar: is no file" in refusal(tmp_path)
