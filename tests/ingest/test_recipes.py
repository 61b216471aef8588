"""Recipe files: what they draw or fetch, and one line for every mistake in them."""

import colorsys
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from errors import PipelineError
from ingest.avatars import FACTORS, draw_avatar, factors, index_of
from ingest.decoding import ImageError, to_rgb
from ingest.preparation import Preparation
from ingest.recipes import load_recipe
from ingest.sources import open_source

PROJECT = Path(__file__).parents[2]


def recipe(tmp_path: Path, text: str) -> Path:
    (tmp_path / "some.yaml").write_text(text)
    return tmp_path / "some.yaml"


def refusal(path: Path, split: str = "random") -> str:
    with pytest.raises(PipelineError) as error:
        open_source(path, split)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize("path", sorted(PROJECT.glob("sources/*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path):
    load_recipe(path)


def test_avatars_are_listed_and_drawn(tmp_path):
    source = open_source(recipe(tmp_path, "{recipe: avatars, num_images: 3, seed: 5, draw_size: 48}"), "random")
    assert source.kind == "recipe" and source.classes == []
    items = source.splits["all"]
    assert len({item.key for item in items}) == 3
    image, label = source.reader.read(items[2])
    assert image.size == (48, 48) and image.mode == "RGB" and label is None
    assert (np.asarray(image) == np.asarray(draw_avatar(5, 2, 48))).all()
    assert source.avatars_seed == 5 and [index_of(item.key) for item in items] == [0, 1, 2]


def test_avatars_differ_by_index_and_by_seed():
    faces = [np.asarray(draw_avatar(seed, index, 32)).tobytes() for seed in (0, 1) for index in range(8)]
    assert len(set(faces)) == 16


def test_avatars_are_the_same_in_every_process():
    program = (
        "import hashlib, random; from ingest.avatars import draw_avatar; random.seed(); random.random()\n"
        "print(hashlib.sha256(b''.join(draw_avatar(0, i, 32).tobytes() for i in range(8))).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=PROJECT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def shown(seed: int, index: int) -> dict[str, str]:
    return {factor: list(FACTORS[factor])[number] for factor, number in factors(seed, index).items()}


def test_factors_of_a_face_stay_what_they_were():
    """The ground's colour is drawn last: when it is the same, so are all draws before it."""
    assert [" ".join(shown(0, index).values()) for index in range(3)] == [
        "light long brown dark hidden red none blue",
        "brown long brown dark hidden line none red",
        "brown hat hidden none wink line beard magenta",
    ]
    assert [draw_avatar(0, index, 32).getpixel((0, 16)) for index in (2, 3, 4)] == [(157, 114, 199), (197, 160, 254), (239, 98, 228)]


def test_factors_are_those_of_the_picture():
    for index in range(60):
        face, picture = shown(0, index), draw_avatar(0, index, 32)
        if face["top"] in ("bald", "short"):
            hue = colorsys.rgb_to_hsv(*(value / 255 for value in picture.getpixel((0, 16))))[0]
            assert list(FACTORS["ground"])[round(hue * 6) % 6] == face["ground"]
    bald = [index for index in range(300) if shown(0, index)["top"] == "bald"]
    for color, value in (("black", 0x61), ("pale", 0xFF), ("yellow", 0xF8)):  # red of python-avatars' skin colours
        heads = [draw_avatar(0, index, 32).getpixel((16, 3)) for index in bald if shown(0, index)["skin_color"] == color]
        assert heads and all(abs(head[0] - value) <= 2 for head in heads)


def test_factors_follow_their_law():
    number = 5000
    faces = [shown(3, index) for index in range(number)]
    rare = 0.35
    expected = {
        ("skin_color", "pale"): 1 / 7,
        ("top", "hat"): 12 / 61,
        ("top", "bald"): 2 / 61,
        ("hair_color", "hidden"): 16 / 61,
        ("hair_color", "pink"): 45 / 61 / 10,
        ("accessory", "none"): 1 - rare * 9 / 10,
        ("accessory", "dark"): rare * 5 / 10,
        ("eyes", "hidden"): rare * 6 / 10,
        ("eyes", "hearts"): (1 - rare * 6 / 10) / 12,
        ("mouth", "line"): 4 / 12,
        ("facial_hair", "none"): 1 - rare * 7 / 8,
        ("ground", "red"): 1 / 6,
    }
    for (factor, name), share in expected.items():
        found = sum(face[factor] == name for face in faces) / number
        assert abs(found - share) < 4 * (share * (1 - share) / number) ** 0.5, (factor, name)
    pairs = Counter((face["mouth"], face["ground"]) for face in faces)
    for mouth, members in FACTORS["mouth"].items():
        for ground in FACTORS["ground"]:
            assert abs(pairs[mouth, ground] / number - len(members.split()) / 12 / 6) < 0.015


def test_avatars_fill_their_frame():
    """A face, not a ground: the middle of most images has another colour than the corner."""
    faces = [np.asarray(draw_avatar(0, index, 32)).astype(int) for index in range(20)]
    assert sum(np.abs(face[16, 16] - face[0, 0]).max() > 20 for face in faces) >= 18
    assert len({tuple(face[0, 0]) for face in faces}) > 10  # grounds vary


FAKE = "recipe: torchvision\ndataset: FakeData\nroot: nowhere\n"  # noise that torchvision makes without a network
SPLITS = "splits: {train: {size: 4, num_classes: 3}, validation: {size: 2, num_classes: 3, random_offset: 9}}\n"


def test_torchvision_splits_and_labels(tmp_path):
    source = open_source(recipe(tmp_path, FAKE + SPLITS + "classes: [ant, bee, cow]"), "folders")
    assert source.classes == ["ant", "bee", "cow"]
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 4, "validation": 2}
    assert len({item.key for items in source.splits.values() for item in items}) == 6
    image, label = source.reader.read(source.splits["train"][1])
    assert to_rgb(image, 10**6).size == (224, 224) and label in (0, 1, 2)


def test_torchvision_reader_survives_the_way_to_a_worker(tmp_path):
    from multiprocessing.reduction import ForkingPickler

    source = open_source(recipe(tmp_path, FAKE + SPLITS + "classes: []"), "folders")
    item = source.splits["validation"][1]
    copy = ForkingPickler.loads(ForkingPickler.dumps(source.reader))
    assert copy.read(item)[0].tobytes() == source.reader.read(item)[0].tobytes()
    assert copy.read(item)[1] is None  # classes: [] means no labels


def test_torchvision_without_class_names_asks_for_them(tmp_path):
    assert "FakeData does not name its classes; give them as classes" in refusal(recipe(tmp_path, FAKE + SPLITS), "folders")


def test_label_beyond_the_named_classes(tmp_path):
    source = open_source(recipe(tmp_path, FAKE + "splits: {train: {size: 30, num_classes: 3}}\nclasses: [ant]"), "random")
    with pytest.raises(PipelineError, match=r"some\.yaml: FakeData-train \d+ has label [12], not an index into the 1 classes"):
        for item in source.splits["all"]:
            source.reader.read(item)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dataset: CIFAR11", "dataset: torchvision.datasets has no data set 'CIFAR11'"),
        ("dataset: os", "dataset: torchvision.datasets has no data set 'os'"),
        ("splits: {train: {split: x}}", "splits: FakeData takes no argument 'split' here; it takes: size"),
        ("splits: {train: {download: true}}", "takes no argument 'download' here"),
        ("splits: {}", "splits: got {}"),
        ("splits: {val: {}}", "splits.val: got 'val'"),
        (
            "splits: {train: {size: many}}",
            "torchvision cannot open FakeData in nowhere (TypeError: 'str' object cannot be interpreted as an integer)",
        ),
        ("dataset: DatasetFolder", "missing 1 required positional argument: 'loader'); check the arguments under splits (root, loader"),
        ("root: ~nobody-of-that-name/x", "root: ~nobody-of-that-name/x starts with the home of a user who has none"),
    ],
)
def test_mistakes_in_a_torchvision_recipe(tmp_path, change, message):
    key = change.split(":")[0]
    text = "".join(line for line in (FAKE + "splits: {train: {}}\nclasses: []\n").splitlines(True) if not line.startswith(key))
    assert message in refusal(recipe(tmp_path, text + change))


def test_damaged_files_of_a_torchvision_data_set_are_each_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    whole = buffer.getvalue()
    (tmp_path / "images/ant").mkdir(parents=True)
    contents = [whole, whole[:60], whole[:40] + bytes(40), whole[:16] + b"\xff" * 30 + whole[46:], b"", b"text"]
    for number, data in enumerate(contents):
        (tmp_path / f"images/ant/{number}.png").write_bytes(data)
    text = f"{{recipe: torchvision, dataset: ImageFolder, root: {tmp_path}/images, splits: {{train: {{}}}}}}"
    source = open_source(recipe(tmp_path, text), "random")
    preparation = Preparation(source.reader, 8, "box", "center", "png", 10_000)
    reasons = [preparation.prepare(item).reason for item in source.splits["all"]]
    assert [reason is None for reason in reasons] == [True, False, False, False, False, False]
    assert not any("\n" in reason for reason in reasons[1:])


def test_data_set_that_cannot_be_fetched_says_what_to_do(tmp_path, monkeypatch):
    import urllib.request

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    text = f"{{recipe: torchvision, dataset: CIFAR10, root: {tmp_path}/data, splits: {{train: {{train: true}}}}}}"
    message = refusal(recipe(tmp_path, text))
    assert "cannot open CIFAR10" in message and "no network" in message and "copy that folder" in message


HUGGING_FACE = "{recipe: huggingface, dataset: some/name, splits: {train: train}}"


def test_missing_datasets_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(recipe(tmp_path, HUGGING_FACE))


class Table:
    """A split as the datasets library has it, as far as it is asked before an image is read."""

    column_names = ("number",)

    def cast_column(self, column: str, feature: object):
        raise TypeError("Couldn't cast array of type int64 to\n{'bytes': Value('binary'), 'path': Value('string')}")


def test_a_column_that_holds_no_images_is_named(tmp_path, monkeypatch):
    library = SimpleNamespace(load_dataset=lambda *_, **__: Table(), Image=lambda decode: None)
    monkeypatch.setitem(sys.modules, "datasets", library)
    text = HUGGING_FACE.replace("}}", "}, image_column: number}")
    assert "image_column: 'number' does not hold images (Couldn't cast array of type int64 to {" in refusal(recipe(tmp_path, text))


def test_hugging_face_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    columns = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    table = datasets.Dataset.from_dict({"picture": list(pixels), "kind": [0, 1, 1]}, features=columns)
    table.to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    text = f"{{recipe: huggingface, dataset: {tmp_path}/data, splits: {{train: train}}, image_column: picture, label_column: kind}}"
    source = open_source(recipe(tmp_path, text), "random")
    assert source.classes == ["ant", "bee"]
    assert [source.reader.read(item)[1] for item in source.splits["all"]] == [0, 1, 1]
    assert "has no column 'kinds'" in refusal(recipe(tmp_path, text.replace("kind}", "kinds}")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe: missing; write recipe: and one of avatars, torchvision, huggingface"),
        ("num_images: 3", "recipe: missing"),
        ("recipe: avatar", "recipe: unknown recipe 'avatar'; known: avatars"),
        ("recipe: [", "not valid YAML"),
        ("{recipe: avatars, num_images: 3, seed: 0, draw_size: 64, colour: red}", "colour: unknown key; known: recipe, num_images"),
        ("{recipe: avatars, num_images: 3, seed: 0}", "draw_size: missing"),
        ("{recipe: avatars, num_images: '3', seed: 0, draw_size: 64}", "num_images: got '3'; input should be a valid integer"),
        ("{recipe: avatars, num_images: 0, seed: 0, draw_size: 64}", "num_images: got 0"),
        ("{recipe: avatars, num_images: 3, seed: true, draw_size: 64}", "seed: got True"),
        ("{recipe: avatars, num_images: 1000000000000, seed: 0, draw_size: 64}", "num_images: got 1000000000000; input should be less"),
        ("{recipe: avatars, num_images: 3, seed: 0, draw_size: 64, seed: 1}", "seed is given twice"),
        ("{recipe: avatars, num_images: 3, seed: 2001-99-99, draw_size: 64}", "not valid YAML: '2001-99-99' is no timestamp"),
        (f"{{recipe: avatars, num_images: 3, seed: {'9' * 5000}, draw_size: 64}}", f"not valid YAML: '{'9' * 40}...' is no integer"),
        ("{recipe: avatars, num_images: !!bool x, seed: 0, draw_size: 64}", "not valid YAML: 'x' is no bool"),
        ("{recipe: avatars, num_images: !!int '', seed: 0, draw_size: 64}", "not valid YAML: '' is no integer"),
        ("[" * 3000, "not valid YAML: lists or mappings are hundreds deep"),
        ('{recipe: avatars, num_images: 3, seed: 0, draw_size: 64, "a\\nb": 1}', r"a\nb: unknown key"),
        (FAKE + "splits: {train: {}}\nclasses: [ant, bee, ant]", "'ant' is there twice; give every class a name of its own"),
    ],
)
def test_mistakes_in_a_recipe_file(tmp_path, text, message):
    assert message in refusal(recipe(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("{recipe: avatars, num_images: 3, seed: 0, draw_size: 64}", "folders", "no train and validation splits; set it to random"),
        (FAKE + "splits: {train: {}}", "folders", "no train and validation splits; set it to random"),
        (FAKE + SPLITS, "random", "has a validation split; set dataset.split: folders"),
    ],
)
def test_recipe_and_split_must_agree(tmp_path, text, split, message):
    assert message in refusal(recipe(tmp_path, text), split)


SMALL_OR_ABSURD = st.integers(-3, 40) | st.sampled_from([2**31, 2**63, 10**30])
VALUES = st.recursive(
    st.none() | st.booleans() | SMALL_OR_ABSURD | st.floats() | st.text(max_size=4) | st.sampled_from(["train", "ant", "~x", "3", "a\nb"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["train", "validation", "size", "num_classes"]), inner, max_size=3)
    ),
    max_leaves=4,
)
PLAIN = {
    "avatars": {"num_images": 3, "seed": 0, "draw_size": 16},
    "torchvision": {
        "dataset": "FakeData",
        "root": "nowhere",
        "splits": {"train": {"size": 3, "num_classes": 2}},
        "classes": ["ant", "bee"],
    },
}
CHANGED_KEYS = st.sampled_from(["recipe", "num_images", "seed", "draw_size", "root", "splits", "classes", "a\nb", 1])


def read_or_refuse(path: Path, split: str) -> None:
    try:
        source = open_source(path, split)
        for item in [items[0] for items in source.splits.values() if items]:
            image, label = source.reader.read(item)
            assert isinstance(image, Image.Image) and (label is None or 0 <= label < len(source.classes))
    except PipelineError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    except ImageError as error:  # arguments that the library refuses only when it makes an image
        assert "\n" not in str(error)


@given(st.sampled_from(sorted(PLAIN)), st.dictionaries(CHANGED_KEYS, VALUES, max_size=2), st.sampled_from(["random", "folders"]))
def test_any_values_are_a_recipe_or_refused(tmp_path_factory, kind, changes, split):
    text = yaml.safe_dump({"recipe": kind, **PLAIN[kind], **changes}, allow_unicode=True, sort_keys=False)
    read_or_refuse(recipe(tmp_path_factory.mktemp("recipe"), text), split)


@given(st.sampled_from(sorted(PLAIN)), st.floats(0, 1), st.binary(max_size=8), st.integers(0, 30))
def test_any_bytes_are_a_recipe_or_refused(tmp_path_factory, kind, place, inserted, num_deleted):
    content = yaml.safe_dump({"recipe": kind, **PLAIN[kind]}).encode()
    start = int(place * len(content))
    path = tmp_path_factory.mktemp("recipe") / "some.yaml"
    path.write_bytes(content[:start] + inserted + content[start + num_deleted :])
    read_or_refuse(path, "random")
