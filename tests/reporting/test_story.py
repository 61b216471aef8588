"""The picture at the top, and how the page is looked at: what the verdict says and no more; by eye, keyboard, phone and on paper."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

import reporting.page
from reporting.images import read_all_examples
from reporting.story import Axis, describe_weakness, letter_of, tell_story
from tests.reporting.experiment import (
    ARMS,
    AS_IN_THE_PAPER,
    CONTROL,
    EXAMPLES,
    LANDMARKS,
    conclusion,
    edit_json,
    write_experiment,
)
from tests.reporting.test_page import SEEDS, make_page, words

ALL = ("baseline", "dae", "continued", "joint_half", "joint_double")
CSS = Path(reporting.page.__file__).with_name("page.css").read_text()


def story_of(root, arms=ALL, seeds=SEEDS) -> dict:
    summary, _ = conclusion(root, arms, seeds)
    grids = root / "artifacts/evaluate"
    return tell_story(summary, {arm: ARMS[arm] for arm in arms}, grids, read_all_examples(summary, grids))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    write_experiment(folder, AS_IN_THE_PAPER | CONTROL | LANDMARKS, SEEDS, arm_noise=0.03)
    return folder


@pytest.fixture(scope="module")
def page(root):
    return make_page(root, ALL, SEEDS)


def test_it_shows_what_the_verdict_has_decided(root):
    rows = {row["label"]: row for row in story_of(root)["rows"]}
    assert {arm: (row["decision"], row["is_chosen"]) for arm, row in rows.items()} == {
        "baseline": ("", False),
        "dae": ("better", True),
        "continued": ("undecided", False),
        "joint_half": ("worse", False),
        "joint_double": ("undecided", False),
    }
    assert [row["letter"] for row in rows.values()] == ["A", "B", "C", "D", "E"]
    assert rows["baseline"]["text"] == "61.00" and len(rows["dae"]["dots"]) == len(SEEDS)
    assert float(rows["dae"]["width"]) / float(rows["baseline"]["width"]) == pytest.approx(52.02 / 61, abs=1e-3)


def test_the_plot_has_weaker_decoders_to_the_right_and_better_samples_below(root):
    plot = story_of(root)["plot"]
    baseline, dae, control = plot["points"][:3]
    assert float(baseline["x"]) < float(control["x"]) < float(dae["x"])  # 33, 34 and 41 after stage 1
    assert float(dae["y"]) > float(control["y"]) > float(baseline["y"]) == float(plot["baseline"])  # 52, 60 and 61 of samples, from the top
    assert len(dae["seeds"]) == len(SEEDS)
    top, height = map(float, plot["band"])
    assert top < float(plot["baseline"]) < top + height
    lowest, highest = (place(plot, 61 + 50 * share) for share in (1 / 1.05 - 1, 0.05))  # of what lies above the floor
    assert top == pytest.approx(highest, abs=0.1) and top + height == pytest.approx(lowest, abs=0.1)
    for axis in ("x_ticks", "y_ticks"):
        assert len(plot[axis]) >= 3 and all(0 <= float(place) <= 100 for place, _ in plot[axis])
    assert plot["floor"] is None  # 11, far below


def place(plot: dict, distance: float) -> float:
    """Where a distance of samples is, from the top, by two ticks."""
    (first, one), *_, (last, other) = ((float(at), float(text)) for at, text in plot["y_ticks"])
    return first + (distance - one) * (last - first) / (other - one)


def test_a_small_difference_looks_small(tmp_path):
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 61.0), "dae": (33.0, 33.0, 60.4)})
    baseline, dae = story_of(tmp_path, ("baseline", "dae"), (0,))["plot"]["points"]
    assert abs(float(baseline["y"]) - float(dae["y"])) < 6


def test_one_arm_has_nothing_to_be_plotted_against(tmp_path):
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 61.0)})
    assert story_of(tmp_path, ("baseline",), (0,))["plot"] is None
    assert "Quality against weakness" not in make_page(tmp_path, ("baseline",))


def test_the_picture_comes_right_after_the_headline(page):
    headline, story, why = (page.index(mark) for mark in ('class="headline"', 'class="story', 'id="why"'))
    assert headline < story < why
    for alt in ("Real validation images", *(f"Samples of {arm}" for arm in ALL)):
        assert f'alt="{alt}"' in page[story:why]
    assert "recommended" in page[story:why] and "full decoder; encoder frozen after 1/2 of baseline&#39;s steps" in page[story:why]


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("baseline", "full decoder; joint training"),
        ("joint_double", "full decoder; joint training for 2 times A's steps"),
        ("dae", "0.5 × the channels; encoder frozen after 1/2 of A's steps"),
        ("dae_dropout", "dropout 0.5; encoder frozen after 1/2 of A's steps"),
        ("dae_block_dropout", "block dropout 0.25; encoder frozen after 1/2 of A's steps"),
        ("early", "full decoder; encoder frozen after 1/8 of A's steps"),
        ("dae_noise", "added noise up to 1; encoder frozen after 1/2 of A's steps"),
        ("robust", "added noise up to 0.5 after freezing; encoder frozen after 1/2 of A's steps"),
    ],
)
def test_an_arm_is_described_in_few_words(arm, words):
    assert describe_weakness(ARMS[arm], "A", 1500) == words


def test_an_encoder_that_is_frozen_at_the_end_is_not_called_early():
    late = {"stage1": ARMS["baseline"]["stage1"], "stage2": ARMS["robust"]["stage2"]}
    assert describe_weakness(late, "A", 1500) == "added noise up to 0.5 after freezing; encoder frozen"


def test_marks_never_repeat():
    assert len({letter_of(number) for number in range(60)}) == 60


@pytest.mark.parametrize(("low", "high"), [(0.0123, 0.0125), (3.0, 47.0), (700.0, 1500.0), (1e6, 3e8)])
def test_an_axis_has_a_few_round_ticks(low, high):
    axis = Axis(low, high)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 8 and len({text for _, text in ticks}) == len(ticks)
    assert all(float(text) == pytest.approx(value) for value, text in ticks)
    assert 0 < float(axis.place(low)) < float(axis.place(high)) < 100 and float(axis.place_down(low)) > float(axis.place_down(high))


def test_every_image_is_enlarged_by_a_link_to_itself_and_closed_by_one_back(page):
    names = re.findall(r'\sid="([^"]+)"', page)
    assert len(set(names)) == len(names)
    opened, closed = (re.findall(rf'<a class="{kind}" href="#([^"]+)"', page) for kind in ("open", "close"))
    assert opened == [name for name in names if re.fullmatch(r"image-\d+-\d+-\d+", name)] and len(opened) == len(ALL) * (7 + len(SEEDS) - 1)
    assert closed == [f"{name}-at" for name in opened] and set(closed) <= set(names)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(names)


def test_of_further_seeds_the_samples_are_shown_compressed(page):
    first, _, others = page.partition('<details class="seeds">')
    others = others.partition("</details>")[0]
    assert "data:image/webp" not in first and others.count("data:image/webp") == (len(SEEDS) - 1) * len(ALL)
    assert "artifacts/evaluate/" in others and all(f"<h3>Seed {seed}</h3>" in others for seed in SEEDS[1:])


def test_a_prior_that_repeats_training_images_is_told_of(page, tmp_path):
    assert words(page).count("no more than chance gives") == len(ALL)
    write_experiment(tmp_path, seeds=(0, 1))
    copied = EXAMPLES["nearest"] | {"share": 0.3}
    edit_json(tmp_path / "artifacts/evaluate/dae-1/examples.json", lambda tree: tree.update(nearest=copied))
    text = words(make_page(tmp_path, seeds=(0, 1)))
    assert "held against held-out images as they are" not in text
    noise = EXAMPLES["nearest"] | {"control": "real"}
    edit_json(tmp_path / "artifacts/evaluate/baseline-0/examples.json", lambda tree: tree.update(nearest=noise))
    assert "The samples of baseline are held against held-out images as they are" in words(make_page(tmp_path, seeds=(0, 1)))
    assert re.search(r"baseline 4\.0 % 5 % 10 % no more than chance gives dae 17\.0 % 5 % 10 % too many, in 1 of 2 seeds", text)


def test_interpolations_are_shown_where_there_are_any(page, tmp_path):
    assert "Between two latents" not in page
    write_experiment(tmp_path)
    folder = tmp_path / "artifacts/evaluate/dae-0"
    edit_json(folder / "examples.json", lambda tree: tree.update(has_interpolations=True))
    (folder / "interpolations.png").write_bytes((folder / "real.png").read_bytes())
    assert make_page(tmp_path).count("Between two latents, in equal steps; real images at both ends") == 1


def test_pictures_have_words_and_headings_an_order(page):
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*?alt="([^"]*)"', page))
    assert len(re.findall("<img ", page)) == len(re.findall('<img [^>]*?alt="', page))
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def luminance(color: str) -> float:
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_what_they_stand_on(scheme):
    parts = CSS.partition("* { box-sizing")[0].split("@media screen")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in parts)
    assert light.keys() == dark.keys()
    colors = light if scheme == "light" else dark
    pairs = [(text, ground) for text in ("ink", "muted", "good", "bad", "unsure", "link") for ground in ("page", "card", "soft")]
    pairs += [("card", f"arm-{number}") for number in range(6)]  # letters on the marks of arms
    low = {pair: round(contrast(*(colors[name] for name in pair)), 2) for pair in pairs}
    assert not {pair: value for pair, value in low.items() if value < 4.5}


def test_paper_is_white_whatever_the_screen_is():
    assert "@media (prefers-color-scheme" not in CSS and "@media screen and (prefers-color-scheme: dark)" in CSS
