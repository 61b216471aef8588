"""What a preset of differing lines stands for: each rule of its composition, the text that comes of it, and its mistakes in a line."""

from pathlib import Path

import pytest
import yaml

from errors import PipelineError
from flows.overlay import compose, differences, merge
from tests.clone import PROJECT
from tests.families import BOTTLENECKS, PRIORS, SAMPLERS

DEFAULT = PROJECT / "presets/default.yaml"
TEXT = DEFAULT.read_text()
TREE = yaml.safe_load(TEXT)
HEADER = TEXT.partition("\n\n")[0]
NEW_ARM = yaml.safe_dump({"mine": TREE["arms"]["baseline"]}, default_flow_style=True, width=1000).strip()[1:-1]


@pytest.fixture
def preset(tmp_path) -> Path:
    return tmp_path / "mine.yaml"


def composed(preset: Path, text: str) -> dict:
    preset.write_text(text)
    return yaml.safe_load(compose(DEFAULT, preset))


def complaint(preset: Path, text: str) -> str:
    preset.write_text(text)
    with pytest.raises(PipelineError) as error:
        compose(DEFAULT, preset)
    message = str(error.value)
    assert message.startswith(f"{preset}: ") and "\n" not in message
    return message.removeprefix(f"{preset}: ")


def with_text(*changes: tuple[str, str]) -> str:
    """The default's text with another header and other lines."""
    text = TEXT.replace(HEADER, "# mine", 1)
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_sections_are_merged_and_lists_and_values_replaced(preset):
    tree = composed(preset, "prior:\n  training: {betas: [0.5, 0.9]}\n  width: 256\ndataset:\n  image_size: 32\n")
    training = TREE["prior"]["training"] | {"betas": [0.5, 0.9]}
    assert tree == TREE | {"prior": TREE["prior"] | {"width": 256, "training": training}, "dataset": TREE["dataset"] | {"image_size": 32}}


def test_a_section_of_another_kind_replaces_the_defaults(preset):
    common = {name: TREE["prior"][name] for name in ("class_conditional", "label_dropout", "training")}
    sizes = {name: TREE["sample"][name] for name in ("num_images", "batch_size", "images_per_shard", "guidance_scale")}
    sections = {"bottleneck": BOTTLENECKS["kl"], "prior": PRIORS["dit"] | common, "sample": sizes | SAMPLERS["heun"]}
    assert composed(preset, yaml.safe_dump(sections)) == TREE | sections


def test_a_section_of_another_kind_is_given_whole(preset):
    assert complaint(preset, "bottleneck:\n  kind: fsq\n").startswith("bottleneck.levels: missing parameter")
    assert complaint(preset, "sample:\n  sampler: maskgit\n  num_steps: 8\n").startswith("sample.num_images: missing parameter")
    assert "missing" not in complaint(preset, "bottleneck:\n  kind: vq\n  levels: [8, 8]\n")  # the default's kind: merged


def test_arms_are_those_that_are_named_in_that_order(preset):
    text = f"arms:\n  refit:\n  {NEW_ARM}\n  baseline: {{}}\n  dae:\n    stage1: {{num_steps: 700}}\n"
    arms = composed(preset, text)["arms"]
    assert list(arms) == ["refit", "mine", "baseline", "dae"]
    assert arms["mine"] == arms["baseline"] == TREE["arms"]["baseline"] and arms["refit"] == TREE["arms"]["refit"]
    assert arms["dae"] == TREE["arms"]["dae"] | {"stage1": TREE["arms"]["dae"]["stage1"] | {"num_steps": 700}}
    assert composed(preset, "report: {title: mine}\n")["arms"] == TREE["arms"]


def test_noise_and_bottleneck_of_an_arm_are_values(preset):
    stages = "  compressed: {stage1: {bottleneck: {code_dim: 4}}}\n  robust: {stage2: {latent_noise: null}}\n"
    text = f"experiment:\n  arms: [baseline]\narms:\n  baseline:\n{stages}"
    arms = composed(preset, text)["arms"]
    assert arms["compressed"]["stage1"]["bottleneck"] == {"code_dim": 4} and arms["robust"]["stage2"]["latent_noise"] is None


def test_what_is_empty_is_the_defaults(preset):
    assert composed(preset, "stage1:\nprior:\n  training:\narms: {}\n") == TREE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stag1:\n  batch_size: 8\n", "stag1: unknown parameter; did you mean stage1?"),
        ("prior:\n  training:\n    batchsize: 8\n", "prior.training.batchsize: unknown parameter; did you mean batch_size?"),
        ("bottleneck:\n  kl_weight: 0.1\n", "bottleneck.kl_weight: unknown parameter of kind vq; it belongs to kind kl"),
        ("arms:\n  baselin:\n", f"arms.baselin: {DEFAULT} has no such arm, and a new one is given whole; did you mean baseline?"),
        ("arms:\n  dae:\n    stage1: {step: 3}\n  baseline:\n", "arms.dae.stage1.step: unknown parameter"),
        ("arms:\n  dae:\n", "experiment.arms names 'baseline', but arms has only: dae"),
        ("arms: [dae]\n", "arms: got ['dae']; must be a section"),
        ("stage1: 3\n", "stage1: got 3; must be a section"),
        ("stage1:\n  batch_size: 0\n", "stage1.batch_size: got 0; input should be greater than 0"),
        ("stage1:\n  batch_size: 0100\n", "stage1.batch_size: YAML 1.1 reads 64 here"),
        ("stage1:\n  batch_size: 8\n  batch_size: 8\n", "line 3: not valid YAML: batch_size is given twice"),
        ("stage1: &one\n  warmup_steps: 5\nstage2: *one\n", "has anchors or aliases"),
        ("{stage1: {warmup_steps: 5}, bottleneck: {kind: fsq, levels: [8, 8]}}", f"cannot be put into the text of {DEFAULT}"),
        ("# nothing\n", "is empty, and must hold one mapping of sections"),
    ],
)
def test_a_mistake_is_one_line_with_the_presets_name(preset, text, message):
    assert complaint(preset, text).startswith(message)


@pytest.mark.parametrize("change", [("width: 128", "width:    96 # no column"), ("\n", "\r\n"), ("  robust:", "  rough:")])
def test_a_whole_file_is_taken_as_it_is(preset, change):
    text = TEXT.replace("image_size: 16  ", "image_size:   16").replace(*change)
    preset.write_bytes(text.encode())
    assert compose(DEFAULT, preset) == text != TEXT


def test_a_file_that_lacks_one_value_gets_the_defaults(preset):
    preset.write_text(TEXT.replace("  top_k: null                   # null: off\n", ""))
    assert compose(DEFAULT, preset) == TEXT


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        # A value of another length: the comment stays in its column, or as near as it gets.
        ("dataset:\n  image_size: 4096\n", [("image_size: 16                # pix", "image_size: 4096              # pix")]),
        (
            "autoencoder:\n  channel_multipliers: [1, 2, 4]\n",
            [("channel_multipliers: [1]      # one", "channel_multipliers: [1, 2, 4]  # one")],
        ),
        ("reconstruction_loss:\n  perceptual: none\n", [("perceptual: efficientnet-lite0  # eff", "perceptual: none              # eff")]),
        # A comment of the preset's, behind or above.
        ("prior:\n  width: 96 # mine\n", [("width: 128\n", "width: 96                     # mine\n")]),
        ("stage1:\n  ema_decay: 0.9  # mine\n", [("ema_decay: 0.995              # 0: off", "ema_decay: 0.9                # mine")]),
        (
            "stage1: # mine\n    # and this,\n    # too\n    batch_size: 8 # eight,\n                  # not nine\n\n# not of stage1\n",
            [
                (
                    "stage1:                         # encoder + bottleneck + auxiliary decoder\n  batch_size: 32\n",
                    "stage1:                         # mine\n  # and this,\n  # too\n  batch_size: 8                 # eight,\n"
                    "                                # not nine\n",
                ),
            ],
        ),
        # Another style is the default's again.
        ("experiment:\n  seeds:\n  - 3\n  - 4\n", [("seeds: [0]                    # ...", "seeds: [3, 4]                 # ...")]),
        ("report: {title: 'a: b'}\n", [("title: Decoupled autoencoder", "title: 'a: b'")]),
        # A section that is replaced comes with its own text.
        (
            "# of levels\nbottleneck:\n    kind: fsq    # own\n    levels: [8,\n      8]\n    # end\n",
            [
                (
                    TEXT[TEXT.index("bottleneck:") : TEXT.index("\n\nreconstruction_loss")],
                    "# of levels\nbottleneck:\n    kind: fsq    # own\n    levels: [8,\n      8]\n    # end",
                ),
            ],
        ),
    ],
)
def test_every_other_character_is_the_defaults(preset, text, changes):
    preset.write_text(f"# mine\n\n{text}")
    assert compose(DEFAULT, preset) == with_text(*changes)


def test_arms_keep_the_comments_of_the_default_and_new_ones_their_own(preset):
    preset.write_text(
        f"# mine\n\narms:\n    # first\n    dae:\n    {NEW_ARM}  # new\n    baseline: # all\n        stage1: {{num_steps: 900}}\n"
    )
    text = compose(DEFAULT, preset)
    arms = text[text.index("arms:    ") : text.index("\n\nfreeze:")].splitlines()
    dae = TEXT[TEXT.index("  dae:    ") : TEXT.index("  dae_long:  ")].splitlines()
    stages = [line for line in TEXT.splitlines() if "start: stage1, learning_rate_factor: 1.0" in line or "num_steps: 1600" in line][:2]
    key = next(line for line in TEXT.splitlines() if line.startswith("arms:"))
    assert arms == [
        key,
        "  # first",
        *dae,
        f"  {NEW_ARM}  # new",
        "  baseline:                     # all",
        stages[0].replace("1600", "900"),
        stages[1],
    ]


def test_arms_keep_what_stands_above_them_in_the_default(preset, tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text(TEXT.replace("  refit:  ", "  # not run\n  refit:  "))
    preset.write_text("arms:\n  refit:\n  baseline:\n  dae:\n")
    assert f"counts them\n  # not run\n{TEXT[TEXT.index('  refit:  ') : TEXT.index('  continued:  ')]}  baseline:" in compose(
        default, preset
    )
    preset.write_text("arms:\n  baseline:\n  dae:\n")
    assert "not run" not in compose(default, preset)


def test_a_new_arm_is_whole_without_the_noise_of_the_others(preset, tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text(
        yaml.safe_dump(TREE | {"experiment": {"arms": ["noisy"], "seeds": [0]}, "arms": {"noisy": TREE["arms"]["dae_noise"]}})
    )
    preset.write_text(f"arms:\n  noisy:\n  {NEW_ARM}\n")
    assert yaml.safe_load(compose(default, preset))["arms"] == {"noisy": TREE["arms"]["dae_noise"], "mine": TREE["arms"]["baseline"]}


def test_a_mistake_in_the_default_is_told_of_the_default(preset, tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text(TEXT.replace("arms:  ", "arm:  ", 1))
    preset.write_text("report: {title: mine}\n")
    with pytest.raises(PipelineError, match=rf"^{default}: arm: unknown parameter; did you mean arms\?"):
        compose(default, preset)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("", "# A preset over the default one."), ("# mine\n", "# mine"), ("# mine\r\n#\r\n# and more\r\n\r\n", "# mine\n#\n# and more")],
)
def test_the_header_is_the_presets_own(preset, header, expected):
    preset.write_bytes(f"{header}report:\r\n  title: mine".encode())
    text = with_text(("title: Decoupled autoencoder", "title: mine"))
    assert compose(DEFAULT, preset) == text.replace("# mine", expected, 1)


def test_differences_are_dotted_keys_with_readable_values():
    assert differences(TREE, TREE) == []
    small = {"bottleneck": {"kind": "kl", "latent_channels": 4, "kl_weight": 3e-6}, "stage1": {"learning_rate": 1e-5, "betas": [0.5, 0.9]}}
    assert differences(TREE, merge(TREE, small | {"arms": {"robust": {"stage2": {"latent_noise": None}}, "dae": {}}})) == [
        "bottleneck: {kind: kl, latent_channels: 4, kl_weight: 0.000003}",
        "stage1.learning_rate: 0.005 -> 0.00001",
        "stage1.betas: [0.9, 0.99] -> [0.5, 0.9]",
        f"arms: {', '.join(TREE['arms'])} -> robust, dae",
        "arms.robust.stage2.latent_noise: {kind: swapped, strength: 0.4} -> null",
    ]
    assert differences(TREE, merge(TREE, {"arms": TREE["arms"] | {"mine": {"stage1": None}}}))[1:] == ["arms.mine: {stage1: null}"]
