"""An exported generator draws what the sample stage draws, needs nothing of the project, and says what is on record."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import export.package
from errors import PipelineError
from export.__main__ import export as export_run
from export.__main__ import main
from export.generator import Generator
from stage import PROJECT
from storage.decoders import load_decoder
from storage.files import read_json, write_json
from storage.frozen import load_frozen
from storage.shards import ShardDataset
from tests.export.runs import CLASSES, NUM_IMAGES, RUN, SEED, SIZE, write_run
from tests.export.test_diffusers_layout import ROUNDING
from tests.sealing import seal

ISOLATED = """
import sys
libraries, folder = sys.argv[1:]
sys.path[:0] = [folder, libraries]
from generator import load
generator = load()
images = generator.sample(3, seed=3, batch_size=4)
again = generator.decode(generator.encode(images))
assert again.shape == images.shape and str(again.dtype) == "torch.uint8"
with open("images", "wb") as file:
    file.write(bytes(images.flatten().tolist()))
print(*(module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)), sep="\\n")
"""


def refused(root: Path, **options) -> str:
    target = root / "exported/here"
    with pytest.raises(PipelineError) as error:
        export_run(root, "dae", SEED, target, **options)
    assert "\n" not in str(error.value)
    assert not target.exists() and not list(root.glob("exported/.*"))
    return str(error.value)


@pytest.mark.parametrize("family", ["transformer", "maskgit", "dit"])
def test_samples_are_the_sample_stages_own(roots, folders, family):
    stage = ShardDataset(roots[family] / f"artifacts/sample/{RUN}", "samples")
    expected = stage.images(range(NUM_IMAGES))
    generator = Generator(folders[family])
    images = generator.sample(NUM_IMAGES, seed=SEED, batch_size=4)
    assert images.shape == (NUM_IMAGES, 3, SIZE, SIZE) and len(images.unique(dim=0)) == NUM_IMAGES
    assert torch.equal(images, expected)
    assert torch.equal(generator.sample(5, seed=SEED, first=3, batch_size=4), expected[3:8])
    by_threes = generator.sample(5, seed=SEED, first=3, batch_size=3)
    assert_same_but_for_rounding(by_threes, expected[3:8], num_other_tokens=0 if family == "dit" else 1)
    assert not torch.equal(generator.sample(NUM_IMAGES, seed=SEED + 1), expected)
    if generator.classes:
        assert generator.draw_labels(range(NUM_IMAGES), SEED).tolist() == stage.labels
        assert torch.equal(generator.sample(NUM_IMAGES, seed=SEED, labels=stage.labels, batch_size=4), expected)
        by_name = [CLASSES[label] for label in stage.labels]
        assert torch.equal(generator.sample(NUM_IMAGES, seed=SEED, labels=by_name, batch_size=4), expected)
        assert torch.equal(generator.sample(4, seed=SEED, first=3, labels=by_name[3:7], batch_size=4), expected[3:7])
        other = generator.sample(NUM_IMAGES, seed=SEED, labels=[1 - label for label in stage.labels], batch_size=4)
        assert not torch.equal(other, expected)


def assert_same_but_for_rounding(images: torch.Tensor, expected: torch.Tensor, num_other_tokens: int) -> None:
    """Kernels round by batch size: a value moves by one level, in .03 % of them as measured, and once in a long while a sampled token."""
    differences = (images.int() - expected.int()).abs().flatten(1)  # (N, values)
    same = differences[differences.amax(dim=1) <= 1]
    assert len(same) >= len(images) - num_other_tokens
    assert same.float().mean() <= 0.01


def test_the_exported_folder_names_no_place_of_this_machine(tmp_path):
    spoiled = write_run(tmp_path / "run", "transformer", patch_size=1)
    manifest = spoiled / "artifacts/shards/manifest.json"
    tree = read_json(manifest)
    tree["source"]["path"] = str(spoiled / "secret/photos")
    write_json(manifest, tree)
    seal(spoiled)
    for layout in ("generator", "diffusers"):
        export_run(spoiled, "dae", SEED, spoiled / f"exported/{layout}", layout)
    files = [path for path in (spoiled / "exported").rglob("*") if path.is_file()]
    assert not [path for path in files if str(spoiled).encode() in path.read_bytes() or b"secret" in path.read_bytes()]
    assert "`photos`" in (spoiled / "exported/generator/README.md").read_text()


def test_labels_are_checked(folders):
    generator = Generator(folders["transformer"])
    wrong = ((["oval", "round"], "no class 'oval'; ``classes`` names the 2 there are"), ([0, 2], "no class 2"), ([0], "1 labels"))
    for labels, message in wrong:
        with pytest.raises(ValueError, match=message):
            generator.sample(2, labels=labels)
    with pytest.raises(ValueError, match="not class-conditional"):
        Generator(folders["maskgit"]).sample(1, labels=[0])


@pytest.mark.parametrize("family", ["transformer", "maskgit", "dit"])
def test_images_encode_and_decode_as_in_the_pipeline(roots, folders, family):
    images = ShardDataset(roots[family] / "artifacts/shards", "train").images(range(6))
    generator, frozen = Generator(folders[family]), load_frozen(roots[family] / f"artifacts/freeze/{RUN}")
    latents, expected = generator.encode(images), frozen.encode(images)
    assert latents.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(latents[name], tensor)
    assert generator.decode(latents).shape == images.shape


def installed_files_of(*libraries: str) -> dict[str, Path]:
    """What these libraries and all that they require have put into site-packages: name -> path."""
    waiting, seen, entries = list(libraries), set(), {}
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        for file in distribution.files or ():
            if not file.parts[0].startswith(".."):
                entries[file.parts[0]] = Path(distribution.locate_file(file.parts[0]))
        requirements = [Requirement(text) for text in distribution.requires or ()]
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return entries


def test_torch_and_safetensors_are_enough(folders, roots, tmp_path):
    """In an interpreter that has nothing else installed, where the project's folder is not on the path."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name, path in installed_files_of("torch", "safetensors").items():
        (libraries / name).symlink_to(path)
    assert not any((libraries / name).exists() for name in ("numpy", "PIL", "yaml", "pydantic"))
    command = [sys.executable, "-I", "-S", "-B", "-c", ISOLATED, str(libraries), str(folders["dit"])]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"OMP_WAIT_POLICY": "passive"})
    assert process.returncode == 0, process.stderr
    imported = process.stdout.splitlines()
    assert f"{folders['dit']}/generator/models/dit.py" in imported
    assert not [file for file in imported if Path(file).parent in (PROJECT, PROJECT / "models", PROJECT / "training")]
    expected = ShardDataset(roots["dit"] / f"artifacts/sample/{RUN}", "samples").images(range(3))
    assert (tmp_path / "images").read_bytes() == bytes(expected.flatten().tolist())


def test_the_same_run_is_exported_to_the_same_bytes(roots, folders, tmp_path):
    export_run(roots["dit"], "dae", SEED, tmp_path / "again")
    first, again = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
        for folder in (folders["dit"], tmp_path / "again")
    )
    assert first == again
    assert {"README.md", "config.json", "prior.safetensors", "generator/__init__.py", "generator/models/dit.py"} <= first.keys()


def test_the_card_says_what_is_on_record(folders, roots):
    card = (folders["transformer"] / "README.md").read_text()
    sha256 = read_json(roots["transformer"] / f"artifacts/freeze/{RUN}/config.json")["sha256"]
    facts = (
        *("arm `dae` with seed 3", sha256, "recipe `sources/faces.yaml`", "| train images | 6 |", "| found, of which skipped | 7, 1 |"),
        *("| temperature | 1.1 |", "| guidance_scale | 2.0 |", "| classes | round, square |", "labels=[...]"),
        *("| samples | `fd_efficientnet_lite0` | 123.46 | 80.5 |", "| samples | `kd_efficientnet_lite0` | -0.00123 |  |"),
        *("| prior | `a_loss` | 2.5 |  |", f"| reference_sha256 | {'ab' * 32} |", "| stage1 | 320 | 20,480 | 2 |", "None of them is FID"),
    )
    for fact in facts:
        assert fact in card, fact
    assert "labels=" not in (folders["maskgit"] / "README.md").read_text()


def test_odd_class_names_leave_the_tables_of_the_card_whole(spoiled):
    manifest = spoiled / "artifacts/shards/manifest.json"
    write_json(manifest, {**read_json(manifest), "classes": ["a|b", "c\nd"]})
    export_run(seal(spoiled), "dae", SEED, spoiled / "exported")
    assert r"| classes | a\|b, c\nd |" in (spoiled / "exported/README.md").read_text()


def test_two_generators_side_by_side(folders, monkeypatch):
    """With their parent on the path; neither disturbs the project's own ``models``."""
    monkeypatch.syspath_prepend(folders["dit"].parent)
    from dit.generator import load as load_dit
    from maskgit.generator import load as load_maskgit

    assert type(load_dit().prior).__name__ == "DiT" and type(load_maskgit().prior).__name__ == "MaskGIT"
    assert type(load_dit().prior).__module__ == "dit.generator.models.dit"


def test_other_weights_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["transformer"], tmp_path / "copy")
    shutil.copy(folders["maskgit"] / "prior.safetensors", folder)
    with pytest.raises(ValueError, match=r"prior\.safetensors: not the weights that were exported"):
        Generator(folder)


@pytest.mark.parametrize(
    "missing",
    [f"artifacts/{stage}/{RUN}" for stage in ("stage1", "freeze", "stage2", "prior", "sample")]
    + ["artifacts/shards", "metrics/reference.json", f"metrics/evaluate/{RUN}.json", f"metrics/prior/{RUN}.json"],
)
def test_a_stage_that_has_not_run_is_named(spoiled, missing):
    path = spoiled / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refused(spoiled) == f"{path} does not exist; run the stages that make it: dvc repro evaluate@{RUN}"


def test_what_does_not_belong_together_is_refused(spoiled):
    evaluated = spoiled / f"metrics/evaluate/{RUN}.json"
    tree = read_json(evaluated)
    write_json(evaluated, {**tree, "frozen_sha256": "0" * 64})
    assert f"{evaluated} was made with frozen encoder 0000000000000000" in refused(seal(spoiled))
    write_json(evaluated, {**tree, "protocol": {**tree["protocol"], "num_images": 25}})
    assert "has another protocol than" in refused(seal(spoiled))
    write_json(evaluated, tree)
    stage2 = spoiled / f"artifacts/stage2/{RUN}"
    write_json(stage2 / "decoder.json", {**read_json(stage2 / "decoder.json"), "frozen_sha256": "1" * 64})
    assert "this decoder was trained on frozen encoder 1111111111111111" in refused(seal(spoiled))


def test_a_failing_export_leaves_nothing(spoiled, monkeypatch):
    def fail(run):
        raise OSError("disk full")

    monkeypatch.setattr(export.package, "generator_card", fail)
    with pytest.raises(OSError, match="disk full"):
        export_run(spoiled, "dae", SEED, spoiled / "exported/here")
    assert not list((spoiled / "exported").iterdir())


def test_the_command(roots, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(roots["transformer"])
    target = tmp_path / "new/folder"
    monkeypatch.setattr(sys, "argv", ["export", "--arm", "dae", "--seed", str(SEED), "--to", str(target)])
    main()
    assert json.loads((target / "config.json").read_text())["format"] == "dae-generator-1"
    assert capsys.readouterr().out == f"{target}: README.md says how to use it\n"
    with pytest.raises(SystemExit, match=f"^error: export: --to {target}: exists and is not an empty folder; name another, or delete it$"):
        main()


@pytest.mark.parametrize("place", ["artifacts/mine", f"artifacts/stage1/{RUN}/mine", "metrics/mine", "link/mine"])
def test_an_export_into_what_the_pipeline_writes_is_refused(spoiled, place):
    """There it would be a file too many of a stage, and the run would be refused from then on."""
    (spoiled / "link").symlink_to("artifacts")
    message = f"--to {spoiled / place}: lies in {place.partition('/')[0].replace('link', 'artifacts')}/, whose files belong to the pipeline"
    with pytest.raises(PipelineError, match=re.escape(message)):
        export_run(spoiled, "dae", SEED, spoiled / place)
    assert not list(spoiled.rglob("mine"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--seed", str(SEED), "--to", "loop/folder"],
            r"error: export: .*/loop: .*; .*, then run it again$",
        ),
        (["--seed", "-1", "--to", "new"], "error: export: --seed -1: must be 0 or larger$"),
        (["--seed", str(SEED), "--to", "x" * 250], "error: export: .*: File name too long; "),
        (["--seed", str(SEED), "--to", ""], "error: export: --to .*: exists and is not an empty folder"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(spoiled, monkeypatch, options, message):
    monkeypatch.chdir(spoiled)
    (spoiled / "loop").symlink_to("loop")
    monkeypatch.setattr(sys, "argv", ["export", "--arm", "dae", *options])
    with pytest.raises(SystemExit, match=f"^{message}") as error:
        main()
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_one_line(roots, tmp_path, monkeypatch):
    monkeypatch.chdir(roots["transformer"])
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["export", "--arm", "dae", "--seed", str(SEED), "--to", str(tmp_path / "taken/folder")])
    with pytest.raises(SystemExit, match=rf"^error: export: {tmp_path}/taken.*(Not a directory|exists).*move that away, then run it"):
        main()


def test_an_autoencoder_for_diffusers(tmp_path):
    """From the command's own format to diffusers: the same reconstruction."""
    import diffusers

    root = write_run(tmp_path / "run", "dit", patch_size=1)
    (tmp_path / "empty").mkdir()
    export_run(root, "dae", SEED, tmp_path / "empty", "diffusers")
    model = diffusers.AutoencoderKL.from_pretrained(tmp_path / "empty").eval()
    frozen = load_frozen(root / f"artifacts/freeze/{RUN}")
    decoder = load_decoder(root / f"artifacts/stage2/{RUN}", frozen.sha256)
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        expected = decoder(frozen.bottleneck.decode(frozen.bottleneck.encode(frozen.encoder(images))))
        torch.testing.assert_close(model(images).sample, expected, **ROUNDING)
    torch.testing.assert_close(torch.tensor(model.config.latents_mean), torch.tensor([0.1, -0.2, 0.3]))
    assert "AutoencoderKL.from_pretrained" in (tmp_path / "empty/README.md").read_text()


def test_what_diffusers_cannot_hold_is_one_line(spoiled):
    assert refused(spoiled, layout="diffusers").startswith("diffusers cannot hold this autoencoder: autoencoder.patch_size is 2")
