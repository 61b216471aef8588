"""params.yaml: every mistake is one line that says where, what and what is allowed."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import kinds
from errors import PipelineError
from params import Params, load_params
from tests.families import BOTTLENECKS, PAIRS, PRIORS, SAMPLERS, with_family

PROJECT = Path(__file__).parent.parent
FILE = PROJECT / "params.yaml"
TREE = yaml.safe_load(FILE.read_text())
REMOVED = object()
COMMON_SAMPLE = {"num_images": 1000, "batch_size": 250, "images_per_shard": 500, "guidance_scale": 1.0}
ARM = TREE["arms"]["dae"]
ADDED, SWAPPED = ({"kind": kind, "strength": 0.5} for kind in ("added", "swapped"))
HALVED = {"arms.dae.stage1.channels_multiplier": 0.5}


def alternatives(names) -> str:
    """``'a', 'b' or 'c'``."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"


KL = {
    "bottleneck": BOTTLENECKS["kl"],
    "prior": PRIORS["dit"] | {name: TREE["prior"][name] for name in ("class_conditional", "label_dropout", "training")},
    "sample": COMMON_SAMPLE | SAMPLERS["heun"],
}


def changed(changes: dict, tree: dict = TREE) -> dict:
    """The project's parameters, or others, with other values at some dotted keys."""
    tree = copy.deepcopy(tree)
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        key = int(last) if isinstance(node, list) else last
        if value is REMOVED:
            del node[key]
        else:
            node[key] = value
    return tree


def complaint(tmp_path: Path, text: str) -> str:
    """What load_params says of a file, without the file's name; it must be one line that starts with it."""
    path = tmp_path / "some params.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as error:
        load_params(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "pydantic" not in message.lower() and "instance of" not in message
    return message.removeprefix(f"{path}: ")


def complaint_about(tmp_path: Path, **changes) -> str:
    return complaint(tmp_path, yaml.safe_dump(changed({key.replace("__", "."): value for key, value in changes.items()})))


def test_the_command_line_says_where_a_preset_of_differing_lines_is_checked():
    command = [sys.executable, "-m", "params"]
    results = [
        subprocess.run([*command, f"presets/{name}.yaml"], cwd=PROJECT, capture_output=True, text=True) for name in ("default", "smoke")
    ]
    assert (results[0].returncode, results[0].stderr) == (0, "") and results[1].returncode == 1
    [line] = results[1].stderr.splitlines()
    assert line == (
        "error: presets/smoke.yaml: holds only what differs from presets/default.yaml; check and take it: make preset NAME=smoke"
    )


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("stage1.learning_rat", "did you mean learning_rate?"),
        ("experimnt", "did you mean experiment?"),
        ("arms.dae.stage1.dropuot", "did you mean dropout?"),
        ("arms.dae.stage3", "did you mean stage2?"),
        ("arms.robust.stage2.latent_noise.strenth", "did you mean strength?"),
        ("prior.training.num_stepss", "did you mean num_steps?"),
        ("prior.training.num_workers", "it is called num_ray_workers now"),
        ("stage1.accumulate_batches", "it is called num_microbatches now"),
        ("encode.num_workers", "known here: batch_size, horizontal_flip"),
        ("stage2.horizontal_flip", "known here: batch_size, learning_rate"),
        ("zzz", "known here: experiment, dataset"),
    ],
)
def test_unknown_parameter(tmp_path, key, suggestion):
    message = complaint(tmp_path, yaml.safe_dump(changed({key: 1})))
    assert message.startswith(f"{key}: unknown parameter; {suggestion}")


def test_a_parameter_whose_name_breaks_the_line_is_named_in_quotes(tmp_path):
    assert complaint_about(tmp_path, **{"a\nb": 1}).startswith(r"'a\nb': unknown parameter; ")


def test_misspelt_parameter_is_named_before_the_one_it_leaves_missing(tmp_path):
    message = complaint_about(tmp_path, stage1__learning_rat=0.001, stage1__learning_rate=REMOVED)
    assert message == "stage1.learning_rat: unknown parameter; did you mean learning_rate? (and 1 more)"


@pytest.mark.parametrize("key", ["prior.training.num_steps", "evaluation", "arms.dae.stage2", "arms.dae.stage1.dropout", "experiment.arms"])
def test_missing_parameter(tmp_path, key):
    assert complaint(tmp_path, yaml.safe_dump(changed({key: REMOVED}))).startswith(f"{key}: missing parameter")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("dataset.image_size", 32.0, "integer"),
        ("dataset.image_size", True, "integer"),
        ("dataset.image_size", None, "integer"),
        ("dataset.image_size", 0, "greater than or equal to 7"),
        ("dataset.source", 3, "string"),
        ("dataset.source", "", "at least 1 character"),
        ("dataset.resize_filter", "nearest", "'box', 'bilinear', 'hamming', 'bicubic' or 'lanczos'"),
        ("dataset.max_skipped_fraction", 1.5, "less than or equal to 1"),
        ("prior.class_conditional", "yes", "boolean"),
        ("prior.class_conditional", 1, "boolean"),
        ("bottleneck.kind", "gumbel", alternatives(kinds.BOTTLENECKS)),
        ("prior.kind", 3, alternatives(kinds.PRIORS)),
        ("sample.sampler", "ddim", alternatives(kinds.kinds_of(kinds.Sample, "sampler"))),
        ("bottleneck.num_codes", 1, "greater than or equal to 2"),
        ("stage1.learning_rate", 0, "greater than 0"),
        ("stage1.learning_rate", "fast", "number"),
        ("stage1.learning_rate", float("inf"), "finite"),
        ("stage1.learning_rate", float("nan"), ""),
        ("stage1.betas", [0.9], "at least 2 items"),
        ("stage1.betas.1", 1.0, "less than 1"),
        ("stage2.warmup_steps", -3, "greater than or equal to 0"),
        ("autoencoder.channel_multipliers", [], "at least 1 item"),
        ("autoencoder.channel_multipliers", [1] * 16, "at most 15 items"),
        ("autoencoder.channel_multipliers", 4, "list"),
        ("autoencoder.channel_multipliers.0", 0, "greater than 0"),
        ("arms.dae.stage1.channels_multiplier", 1.5, "less than or equal to 1"),
        ("arms.dae.stage2.start", "warm", "'fresh' or 'stage1'"),
        ("sample.top_p", 1.5, "less than or equal to 1"),
        ("sample.top_k", 0, "greater than 0"),
        ("sample.top_k", "ten", "integer"),
        ("runtime.device", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("runtime.num_threads", 0, "greater than 0"),
        ("experiment.seeds", 3, "list"),
        ("experiment.seeds", [], "at least 1 item"),
        ("experiment.seeds.0", -1, "greater than or equal to 0"),
        ("experiment.arms", "dae", "list"),
        ("reconstruction_loss.discriminator_head_start", 0.5, "integer"),
        ("reconstruction_loss.adversarial_weight", 0.0, "greater than 0"),
        ("arms.dae.stage1.num_adversarial_steps", -1, "0"),
        ("arms.dae.stage2.learning_rate_factor", 1.5, "less than or equal to 1"),
        ("arms.dae_noise.stage1.latent_noise.strength", 0.0, "greater than 0"),
        ("arms.dae_noise.stage1.latent_noise.kind", "additive", "'interpolated', 'added' or 'swapped'"),
        ("report.title", 5, "string"),
        ("gates.min_prior_share", 1.5, "less than or equal to 1"),
        ("gates.min_distance_over_floor", 1.0, "greater than 1"),
    ],
)
def test_wrong_value(tmp_path, key, value, allowed):
    message = complaint(tmp_path, yaml.safe_dump(changed({key: value})))
    shown = "[1, 1, 1, 1, 1, 1, ...]" if value == [1] * 16 else repr(value)
    assert message.startswith(f"{key}: got {shown}; ") and allowed in message


@pytest.mark.parametrize("key", ["stage1", "arms", "arms.dae", "arms.dae.stage1", "prior.training"])
@pytest.mark.parametrize("value", [None, 3, [1]])
def test_section_that_is_no_mapping(tmp_path, key, value):
    message = complaint(tmp_path, yaml.safe_dump(changed({key: value})))
    assert message.startswith(f"{key}: got {value!r}; ")


@pytest.mark.parametrize(
    ("key", "text", "advice"),
    [
        ("stage1.learning_rate", "1e-4", "write 0.0001"),
        ("stage1.betas.1", "9e-1", "write 0.9"),
        ("prior.training.weight_decay", "'0.1'", "write 0.1"),
        ("dataset.image_size", "'32'", "write 32 "),
        ("sample.num_images", "1e3", "write 1000 "),
        ("experiment.seeds.0", "'0'", "write 0 "),
    ],
)
def test_number_that_yaml_reads_as_text(tmp_path, key, text, advice):
    """PyYAML takes 1e-4 for a string; the advice must itself be accepted."""
    value = yaml.safe_load(text)
    assert isinstance(value, str)
    message = complaint(tmp_path, yaml.safe_dump(changed({key: value})))
    assert message.startswith(f"{key}: got {value!r}; ") and "as text" in message
    assert f"{advice.strip()} " in f"{message.rstrip(')')} ".replace(")", " ")
    Params.model_validate(changed({key: yaml.safe_load(advice.removeprefix("write "))}))


@pytest.mark.parametrize("key", ["experiment.seeds.0", "stage1.learning_rate"])
@pytest.mark.parametrize("text", ["nan", "NAN", "inf"])
def test_text_that_is_no_finite_number_gets_no_advice_to_write_one(tmp_path, key, text):
    message = complaint(tmp_path, yaml.safe_dump(changed({key: text})))
    assert message.startswith(f"{key}: got {text!r}; ") and "as text" not in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experiment.arms": ["dae", "dea"]}, ("experiment.arms", "'dea'", "arms has only: baseline, ")),
        ({"experiment.arms": ["dae", "dae"]}, ("experiment", "arms", "['dae', 'dae']")),
        ({"experiment.seeds": [0, 1, 0]}, ("experiment", "seeds", "[0, 1, 0]")),
        ({"arms.Bad-Name": ARM}, ("arms.Bad-Name", "^[a-z0-9_]+$")),
        ({"dataset.image_size": 15}, ("dataset.image_size", "15", "multiple of", "autoencoder.patch_size")),
        (
            {"dataset.image_size": 8, "reconstruction_loss.discriminator_num_layers": 2, "arms.dae.stage1.num_adversarial_steps": 160},
            ("discriminator_num_layers 2", "dataset.image_size 8", "fewer than 3 pixels"),
        ),
        ({"dataset.source": "~/images"}, ("dataset", "source", "~/images", "whole path")),
        ({"dataset.source": "my\nimages"}, ("dataset: source 'my\\nimages'", "end of line")),
        ({"dataset.source": "my\0images"}, ("dataset: source 'my\\x00images'", "zero byte")),
        ({"sample.num_images": 900}, ("sample.num_images 900", "evaluation.num_images")),
        ({"sample.num_images": 10}, ("sample: batch_size 250 is larger than num_images 10", "lower batch_size")),
        ({"sample.images_per_shard": 400}, ("sample: images_per_shard 400", "multiple of batch_size 250", "1000 (num_images)")),
        ({"sample.num_images": 10**12}, ("sample: num_images 1000000000000 in shards of 500", "more than 1000000 shards")),
        ({"sample.images_per_shard": 100}, ("sample: images_per_shard 100", "multiple of batch_size 250", "1000 (num_images)")),
        ({"sample.guidance_scale": 2.0}, ("sample.guidance_scale", "prior.class_conditional: true")),
        ({"prior.num_heads": 3}, ("prior", "width", "num_heads 3")),
        ({"evaluation.kid_subset_size": 10**6}, ("evaluation", "kid_subset_size 1000000", "num_images")),
        ({"stage1.num_microbatches": 3}, ("stage1", "batch_size", "num_microbatches", "3")),
        ({"prior.training.num_ray_workers": 3}, ("prior.training", "batch_size", "num_ray_workers", "3")),
        ({"arms.dae.stage1.num_adversarial_steps": 780}, ("arms.dae.stage1: num_adversarial_steps 780", "head_start 100", "num_steps 800")),
        ({"arms.dae.stage2.num_steps": 0}, ("arms.dae", "stage2.num_steps is 0", "stage2.start must be stage1")),
        ({"arms.baseline.stage2.latent_noise": ADDED}, ("arms.baseline", "stage2.num_steps is 0", "latent_noise must be null")),
        ({"arms.dae.stage2.latent_noise": SWAPPED, **KL}, ("arms.dae.stage2.latent_noise", "swapped needs tokens", "added")),
        ({"arms.dae.stage1.bottleneck": {"num_codse": 8}}, ("dae.stage1.bottleneck, which holds", "num_codse: unknown", "mean num_codes?")),
        ({"arms.dae.stage1.bottleneck": {"num_codes": 1}}, ("dae.stage1.bottleneck, ", ": num_codes: got 1; ", "or equal to 2")),
        ({"arms.dae.stage1.bottleneck": {"kind": 1}}, ("arms.dae.stage1.bottleneck.kind", "all arms", "vq")),
        ({"arms.dae.stage2.start": "stage1", **HALVED}, ("arms.dae", "stage2.start", "channels_multiplier 1.0")),
        ({"evaluation.num_images": 2000, "sample.num_images": 2000}, ("evaluation.num_images 2000", "dataset.num_validation_images")),
        ({"autoencoder.attention_resolutions": [5]}, ("autoencoder.attention_resolutions", "5")),
        (
            {"bottleneck": BOTTLENECKS["kl"]},
            ("bottleneck.kind kl and prior.kind transformer do not go together", "set prior.kind to dit", "bottleneck.kind to vq or fsq"),
        ),
        ({"bottleneck": {"kind": "fsq", "levels": [999] * 9}}, ("bottleneck", "levels [999", "number of codes")),
        ({"sample": COMMON_SAMPLE | SAMPLERS["heun"]}, ("sample.sampler heun", "prior.kind transformer", "autoregressive", "dit")),
    ],
)
def test_values_that_contradict_each_other(tmp_path, changes, expected):
    message = complaint(tmp_path, yaml.safe_dump(changed(changes)))
    assert all(part in message for part in expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_pairs_that_make_sense_are_accepted_and_others_refused_by_name(tmp_path, bottleneck, prior, sampler):
    text = yaml.safe_dump(with_family(TREE, bottleneck, prior, sampler))
    bottlenecks, samplers = PAIRS[prior]
    if bottleneck not in bottlenecks:
        assert f"bottleneck.kind {bottleneck} and prior.kind {prior} do not go together" in complaint(tmp_path, text)
    elif sampler not in samplers:
        assert f"sample.sampler {sampler} does not sample from prior.kind {prior}" in complaint(tmp_path, text)
    else:
        Params.model_validate(yaml.safe_load(text))


DIT = with_family(TREE, "kl", "dit", "heun")


@pytest.mark.parametrize(
    ("tree", "key", "value", "expected"),
    [
        (TREE, "bottleneck.levels", [8], "unknown parameter of kind vq; it belongs to kind fsq; known here: kind, num_codes, code_dim"),
        (TREE, "sample.churn", 1.0, "unknown parameter of sampler autoregressive; it belongs to sampler stochastic; known here: "),
        (TREE, "bottleneck.num_cods", 3, "unknown parameter; did you mean num_codes?"),
        (DIT, "bottleneck.num_codes", 3, "unknown parameter of kind kl; it belongs to kind vq; known here: kind, latent_channels"),
        (DIT, "prior.pach_size", 3, "unknown parameter; did you mean patch_size?"),
        (DIT, "prior.dropout", 0.1, "unknown parameter of kind dit; it belongs to kind transformer or maskgit; known here: "),
        (DIT, "prior.training.num_stepss", 3, "unknown parameter; did you mean num_steps?"),
        (DIT, "prior.kind", REMOVED, "missing parameter"),
        (DIT, "prior.patch_size", REMOVED, "missing parameter"),
        (DIT, "prior.training.num_steps", REMOVED, "missing parameter"),
        (DIT, "bottleneck", 3, "got 3; must be a section"),
        (DIT, "bottleneck.kl_weight", -1.0, "got -1.0; input should be greater than or equal to 0"),
        (DIT, "prior.size", "XXL", "got 'XXL'; input should be 'S', 'B', 'L' or 'XL'"),
        (DIT, "prior.training.learning_rate", "1e-4", "got '1e-4'; "),
        (DIT, "sample.guidance_interval", [0.5], "got [0.5]; list should have at least 2 items"),
        (DIT, "sample.guidance_interval.1", 1.5, "got 1.5; "),
    ],
)
def test_mistakes_in_sections_of_several_kinds_name_the_dotted_key(tmp_path, tree, key, value, expected):
    assert complaint(tmp_path, yaml.safe_dump(changed({key: value}, tree))).startswith(f"{key}: {expected}")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("prior.size", "S", ("prior: size S and num_layers 2", "set one of them to null")),
        ("prior.width", None, ("prior: size is null", "num_layers, num_heads and width")),
        ("prior.num_heads", 3, ("prior: width 32", "num_heads 3")),
        ("prior.width", 34, ("prior: width 34 is not a multiple of 4",)),
        ("prior.patch_size", 3, ("prior.patch_size 3 does not divide", "8")),
        ("sample.guidance_interval", [0.9, 0.1], ("sample: guidance_interval [0.9, 0.1]",)),
        ("sample.guidance_scale", 2.0, ("sample.guidance_scale", "prior.class_conditional: true")),
    ],
)
def test_values_of_a_dit_that_contradict_each_other(tmp_path, key, value, expected):
    message = complaint(tmp_path, yaml.safe_dump(changed({key: value}, DIT)))
    assert all(part in message for part in expected)


@pytest.mark.parametrize(
    "changes", [{"bottleneck.kind": "vq", "prior.kind": "dit"}, {"prior.kind": "dit"}, {"bottleneck.kind": "kl"}], ids=str
)
def test_a_pair_that_does_not_go_together_comes_before_its_keys(tmp_path, changes):
    message = complaint(tmp_path, yaml.safe_dump(changed(changes)))
    assert message.startswith("bottleneck.kind ") and "do not go together" in message and "dropout" not in message


SENSELESS = {
    "dataset.image_size": 10**9, "autoencoder.channels": 10**7, "autoencoder.channel_multipliers.0": 10**7,
    "autoencoder.num_res_blocks": 10**6, "bottleneck.num_codes": 10**10, "bottleneck.code_dim": 10**7,
    "bottleneck.commitment_weight": 1e30, "reconstruction_loss.pixel_weight": 1e30, "reconstruction_loss.adversarial_weight": 1e30,
    "reconstruction_loss.discriminator_channels": 10**7, "reconstruction_loss.discriminator_num_layers": 10**7,
    "reconstruction_loss.discriminator_learning_rate": 1e30, "stage1.learning_rate": 1e39, "stage2.weight_decay": 1e39,
    "prior.num_layers": 10**6, "prior.width": 2**30, "sample.batch_size": 10**9, "sample.temperature": 1e39,
    "evaluation.input_size": 10**6, "evaluation.kid_num_subsets": 10**6, "arms.dae_noise.stage1.latent_noise.strength": 1e30,
    "runtime.num_threads": 10**6, "runtime.num_ray_tasks": 10**6, "prior.training.num_ray_workers": 10**6,
    "dataset.images_per_shard": 10**18, "stage2.batch_size": 2**60, "sample.guidance_scale": 1e308,
}


@pytest.mark.parametrize(("key", "value"), SENSELESS.items())
def test_sizes_that_make_no_sense(tmp_path, key, value):
    message = complaint(tmp_path, yaml.safe_dump(changed({key: value})))
    assert message.startswith(f"{key}: got {value}; input should be less than or equal to")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("prior.time_shift", 1e-320, "greater than or equal to 0.000000001"),  # as if it were 0, which divides
        ("sample.num_steps", 10**9, "less than or equal to 100000"),
    ],
)
def test_sizes_of_a_dit_that_make_no_sense(tmp_path, key, value, expected):
    assert complaint(tmp_path, yaml.safe_dump(changed({key: value}, DIT))).startswith(f"{key}: got {value!r}; input should be {expected}")


def test_a_temperature_that_32_bits_take_for_0(tmp_path):
    assert complaint_about(tmp_path, sample__temperature=1e-320).startswith("sample.temperature: got 1e-320; input should be greater")


def test_arm_too_long_for_a_file_name(tmp_path):
    name = "a" * 65
    message = complaint(tmp_path, yaml.safe_dump(changed({f"arms.{name}": TREE["arms"]["dae"]})))
    assert name in message and "64" in message


def test_file_that_is_missing_a_folder_or_not_text(tmp_path):
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "image.yaml"):
        with pytest.raises(PipelineError) as error:
            load_params(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_many_mistakes_are_counted(tmp_path):
    assert complaint_about(tmp_path, stage1__batch_size=0, prior__width=0, encode__batch_size=0).endswith("(and 2 more)")


def check(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "params", *arguments], cwd=cwd, capture_output=True, text=True)


def test_command_says_nothing_when_all_is_right():
    result = check()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_command_names_a_missing_source_and_fails(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(changed({"dataset.source": "no/such/folder"})))
    result = check(str(path))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "dataset.source: no/such/folder does not exist" in result.stderr
