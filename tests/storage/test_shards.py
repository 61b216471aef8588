"""The shard format: bytes that repeat, readable by webdataset itself, every damage named."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from errors import PipelineError
from storage.files import sha256_bytes
from storage.shards import ShardDataset, read_manifest, write_manifest, write_shard

CLASSES = ["cat", "dog", "owl"]


def samples(start: int, stop: int, labelled: bool = True):
    """Images whose pixels are a function of their index."""
    for index in range(start, stop):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield f"image-{index:04d}", pixels, index % 3 if labelled else None


def write(folder, image_format="png", labelled=True):
    """Two train shards of 5 and 3 images, and one for validation of 2."""
    train = [
        write_shard(folder / f"train-{i:06d}.tar", samples(*bounds, labelled), image_format) for i, bounds in enumerate([(0, 5), (5, 8)])
    ]
    validation = [write_shard(folder / "validation-000000.tar", samples(8, 10, labelled), image_format)]
    write_manifest(folder, {"train": train, "validation": validation}, 8, image_format, CLASSES if labelled else [], note="kept")
    return folder


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_the_same_samples_make_the_same_bytes(tmp_path, image_format):
    one, other = write(tmp_path / "one", image_format), write(tmp_path / "other", image_format)
    names = sorted(path.name for path in one.iterdir())
    assert names == ["manifest.json", "train-000000.tar", "train-000001.tar", "validation-000000.tar"]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_golden_layout_of_a_tar(tmp_path):
    write_shard(tmp_path / "t.tar", samples(0, 2), "png")
    with tarfile.open(tmp_path / "t.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["image-0000.cls", "image-0000.png", "image-0001.cls", "image-0001.png"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o444)}


def test_webdataset_itself_reads_the_shards(tmp_path):
    write(tmp_path)
    urls = [str(tmp_path / f"train-{i:06d}.tar") for i in range(2)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [key for key, _, _ in samples(0, 8)]
    for sample, (_, pixels, label) in zip(read, samples(0, 8), strict=True):
        assert int(sample["cls"]) == label
        assert (np.asarray(Image.open(io.BytesIO(sample["png"]))) == pixels).all()


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_dataset_gives_back_pixels_labels_and_keys(tmp_path, image_format):
    dataset = ShardDataset(write(tmp_path, image_format), "train")
    expected = list(samples(0, 8))
    assert len(dataset) == 8 and dataset.num_classes == 3
    assert dataset.keys == [key for key, _, _ in expected]
    assert dataset.labels == [label for _, _, label in expected]
    for index, (_, pixels, label) in enumerate(expected):
        image, found = dataset[index]
        assert image.dtype == torch.uint8 and image.shape == (3, 8, 8) and found == label
        assert (image.permute(1, 2, 0).numpy() == pixels).all()


def test_batches_follow_the_given_indices(tmp_path):
    dataset = ShardDataset(write(tmp_path), "train")
    batch = dataset.images(torch.tensor([7, 0, 0, 5]))
    assert batch.shape == (4, 3, 8, 8) and batch.is_contiguous()
    for row, index in enumerate([7, 0, 0, 5]):
        assert torch.equal(batch[row], dataset[index][0])
    assert torch.equal(dataset[-1][0], dataset[7][0])
    assert dataset.images([]).shape == (0, 3, 8, 8)
    for index in (8, -9):
        with pytest.raises(IndexError):
            dataset.images([index])


def test_jpeg_shards_are_close(tmp_path):
    smooth = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    entry = write_shard(tmp_path / "train-000000.tar", [("a", smooth, None)], "jpeg")
    write_manifest(tmp_path, {"train": [entry]}, 8, "jpeg", [])
    assert (ShardDataset(tmp_path, "train")[0][0].permute(1, 2, 0).int() - torch.from_numpy(smooth).int()).abs().max() <= 3


def test_without_labels_every_label_is_minus_1(tmp_path):
    dataset = ShardDataset(write(tmp_path, labelled=False), "train")
    assert dataset.labels == [-1] * 8 and dataset.num_classes == 0 and dataset[3][1] == -1


def test_shards_say_which_images_they_hold(tmp_path):
    dataset = ShardDataset(write(tmp_path), "train")
    assert [(entry["name"], indices) for entry, indices in dataset.shards] == [
        ("train-000000.tar", range(0, 5)),
        ("train-000001.tar", range(5, 8)),
    ]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_processes_read_the_same_images(tmp_path, start):
    dataset = ShardDataset(write(tmp_path), "train")
    dataset.images([0, 7])  # whatever is opened on first use must not be shared with, or missing in, the workers
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=start)
    images, labels = zip(*loader, strict=True)
    assert torch.equal(torch.cat(images), dataset.images(range(8)))
    assert torch.cat(labels).tolist() == dataset.labels


def test_manifest_counts_and_keeps_extra_keys(tmp_path):
    manifest = read_manifest(write(tmp_path))
    assert manifest["note"] == "kept" and manifest["classes"] == CLASSES
    assert {split: content["num_images"] for split, content in manifest["splits"].items()} == {"train": 8, "validation": 2}


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "../a", "a b", "k" * 95])
def test_keys_that_webdataset_would_misread_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "t.tar", [(key, np.zeros((8, 8, 3), np.uint8), None)], "png")
    assert not (tmp_path / "t.tar").exists()


def test_duplicate_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="duplicate"):
        write_shard(tmp_path / "t.tar", [*samples(0, 2), *samples(1, 2)], "png")


def test_failure_while_writing_leaves_no_shard(tmp_path):
    def failing():
        yield from samples(0, 2)
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "t.tar", failing(), "png")
    assert not (tmp_path / "t.tar").exists()


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_shard_is_named(tmp_path):
    (write(tmp_path) / "train-000001.tar").unlink()
    with pytest.raises(PipelineError) as error:
        ShardDataset(tmp_path, "train")
    assert "train-000001.tar" in one_line(error) and "dvc checkout" in one_line(error)


def test_shortened_shard_is_named(tmp_path):
    path = write(tmp_path) / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(PipelineError, match=r"train-000001\.tar: has \d+ bytes, the manifest says \d+; .*dvc repro") as error:
        ShardDataset(tmp_path, "train")
    one_line(error)


@pytest.mark.parametrize("position", [0, 257, 1024 + 130])
def test_a_tar_that_is_none_of_ours_is_named_though_its_hash_is_right(tmp_path, position):
    entry = write_shard(tmp_path / "train-000000.tar", samples(0, 5), "png")
    data = bytearray((tmp_path / "train-000000.tar").read_bytes())
    data[position : position + 8] = b"\xff" * 8
    (tmp_path / "train-000000.tar").write_bytes(data)
    write_manifest(tmp_path, {"train": [entry | {"sha256": sha256_bytes(data)}]}, 8, "png", CLASSES)
    with pytest.raises(PipelineError, match=r"train-000000\.tar: is not a tar of this project") as error:
        ShardDataset(tmp_path, "train")
    one_line(error)


def test_damaged_image_is_named_when_it_is_read(tmp_path):
    """A file may change after its shard was opened and hashed."""
    path = write(tmp_path) / "train-000000.tar"
    dataset = ShardDataset(tmp_path, "train")
    data = path.read_bytes()
    start = data.index(b"\x89PNG", data.index(b"image-0002.png"))
    path.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
    dataset.images([0, 1, 3])
    with pytest.raises(PipelineError, match=r"train-000000\.tar: image-0002 cannot be read") as error:
        dataset.images(range(5))
    one_line(error)


def flip_bit(path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << position % 8]))


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_a_flipped_bit_anywhere_in_a_shard_is_refused_when_it_is_opened(tmp_path, image_format):
    """In headers, labels, images and padding."""
    path = write(tmp_path, image_format) / "train-000000.tar"
    for position in range(0, path.stat().st_size, 13):  # coprime to 8 and to 512: every bit of a byte, every place in a block
        flip_bit(path, position)
        with pytest.raises(PipelineError, match=r"train-000000\.tar: is damaged \(its SHA-256 .* dvc repro") as error:
            ShardDataset(tmp_path, "train")
        one_line(error)
        flip_bit(path, position)
    assert len(ShardDataset(tmp_path, "train")) == 8


def test_a_bit_of_a_png_that_flips_after_opening_never_gives_other_pixels(tmp_path):
    path = write(tmp_path) / "train-000000.tar"
    data, dataset = path.read_bytes(), ShardDataset(tmp_path, "train")
    expected = dataset.images([2])
    start, end = data.index(b"\x89PNG", data.index(b"image-0002.png")), data.index(b"IEND", data.index(b"image-0002.png"))
    refused = 0
    for position in range(start, end):
        flip_bit(path, position)
        try:
            assert torch.equal(dataset.images([2]), expected), position
        except PipelineError:
            refused += 1
        flip_bit(path, position)
    assert refused > 0.9 * (end - start)


def test_a_copy_for_another_process_hashes_nothing_again(tmp_path):
    dataset = ShardDataset(write(tmp_path), "train")
    expected = dataset.images(range(5, 8))
    flip_bit(tmp_path / "train-000000.tar", 0)
    with pytest.raises(PipelineError, match="is damaged"):
        ShardDataset(tmp_path, "train")
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).images(range(5, 8)), expected)


def test_only_one_shard_is_read_where_one_is_asked_for(tmp_path):
    whole = ShardDataset(write(tmp_path), "train")
    (tmp_path / "train-000000.tar").unlink()
    part = ShardDataset(tmp_path, "train", only="train-000001.tar")
    assert part.keys == whole.keys[5:] and part.shards == [(whole.shards[1][0], range(3))]
    assert torch.equal(part.images(range(3)), whole.images(range(5, 8)))
    flip_bit(tmp_path / "train-000001.tar", 512)  # in the first label
    with pytest.raises(PipelineError, match=r"train-000001\.tar: is damaged"):
        ShardDataset(tmp_path, "train", only="train-000001.tar")


def test_image_of_another_size_is_named(tmp_path):
    entry = write_shard(tmp_path / "train-000000.tar", samples(0, 1), "png")
    write_manifest(tmp_path, {"train": [entry]}, 16, "png", CLASSES)
    with pytest.raises(PipelineError, match=r"image-0000 is 8x8 pixels, expected 16x16"):
        ShardDataset(tmp_path, "train")[0]


def test_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(PipelineError, match="no split 'test'; it has: train, validation"):
        ShardDataset(write(tmp_path), "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("1" * 5000, "not valid JSON"), ('{"format": "x"}', "format is 'x'"), ("[]", "format is None")],
)
def test_unusable_manifest_is_named(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PipelineError, match=message):
        read_manifest(tmp_path)
    with pytest.raises(PipelineError, match="no such file"):
        read_manifest(tmp_path / "nowhere")
