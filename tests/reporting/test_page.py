"""The page: it says what the numbers say, shows what was skipped, and needs nothing but itself."""

import html
import re

import pytest

import reporting.images
import reporting.page
import reporting.story
from errors import PipelineError
from evaluation.factors import FACTOR_TV
from reporting.page import describe_arm, flatten_parameters, format_bytes, render
from reporting.summary import format_duration
from reporting.tables import format_count
from tests.reporting.experiment import (
    ARMS,
    AS_IN_THE_PAPER,
    CONTROL,
    LANDMARKS,
    PROTOCOL,
    conclusion,
    edit_json,
    write_experiment,
    write_manifest,
)
from tests.spoiling import survives

SEEDS = (0, 1, 2, 3, 4)
TESTABLE = ("baseline", "dae", "continued", "joint_half", "joint_double")


def make_page(root, arms=("baseline", "dae"), seeds=(0,), title="A title"):
    summary, durations = conclusion(root, arms, seeds)
    parameters = {"dataset": {"source": "photos"}, "arms": {arm: ARMS[arm] for arm in arms}}
    return render(title, summary, durations, root / "curves", root / "artifacts/evaluate", parameters)


def words(page: str) -> str:
    """The page's text, without tags, style, pictures and the paper's own figures."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<aside.*?</aside>", "", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    write_experiment(root)
    return make_page(root)


def test_the_page_asks_the_network_for_nothing(page):
    links = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']([^"']*)""", page)
    outside = {link for link in links if not link.startswith(("data:", "#"))}
    assert outside == {"https://arxiv.org/abs/2307.08283"}
    assert "<script" not in page
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_without_inception_only_the_paper_has_an_fid(page):
    assert "FID" not in words(page)
    assert "FD" in words(page)
    assert re.search(r"<aside.*?FID 8\.58.*?9\.97.*?</aside>", page, flags=re.DOTALL)


def test_with_inception_the_distance_is_an_fid(tmp_path):
    write_experiment(tmp_path, protocol=PROTOCOL | {"extractor": "inception-v3-compat"}, distance="fid")
    text = words(make_page(tmp_path))
    assert "Samples of dae have FID 52.00" in text
    assert "EfficientNet" not in text
    assert "cannot be compared with figures published elsewhere" not in text


def test_the_headline_turns_with_the_numbers(page, tmp_path):
    assert "No verdict: one seed gives none" in words(page)
    for distances, headline, expectations in (
        (AS_IN_THE_PAPER, "Decouple, as weakly as dae: the FD of dae's samples is 0.820 times", "as in the paper"),
        (
            {"baseline": (33.0, 32.0, 61.0), "dae": (30.0, 36.0, 75.0)},
            "Do not decouple: the FD of dae's samples is 1.280 times",
            "not here",
        ),
    ):
        arms = ("baseline", "dae", *LANDMARKS)
        write_experiment(tmp_path, distances | LANDMARKS, SEEDS, arm_noise=0.03)
        text = words(make_page(tmp_path, arms, SEEDS))
        assert headline in text and text.count(expectations) == 3


def test_the_answer_comes_first_then_why_then_how_sure_and_pictures_before_tables(tmp_path):
    arms = TESTABLE
    better = {"joint_double": (30.0, 30.0, 45.0)}
    write_experiment(tmp_path, AS_IN_THE_PAPER | CONTROL | LANDMARKS | better, SEEDS, arm_noise=0.03)
    for seed in SEEDS:
        for arm in arms:
            edit_json(tmp_path / f"metrics/evaluate/{arm}-{seed}.json", lambda tree: tree["samples"].update(factor_tv=0.2))
    page = make_page(tmp_path, arms, SEEDS)
    order = ["headline", 'id="why"', 'id="certainty"', 'id="images"', 'id="results"']
    assert sorted(order, key=page.index) == order
    text = words(page)
    assert "Not testable at this budget: add joint training for still more steps than joint_double's" in text
    assert (
        "The baseline is joint_double, the best joint training" in text and "joint_double (the baseline, the best joint training)" in text
    )
    assert re.search(
        r"best of its kind .*? 0\.68 at least 0\.952 failed Joint_double draws better samples .*? not found yet\. Add joint", text
    )
    assert re.search(r"The prior matters .*? 0\.5\d+ at least 0\.5 passed", text)
    assert f"dae {FACTOR_TV.full_label} 1.000 1.000 to 1.000 1.000 no opinion" in text
    assert re.search(r"dae 1\.20\d 1\.20\d to 1\.20\d < 0\.001 1\.156 1\.156 to 1\.156 5 worse – continued", text)
    assert re.search(r"baseline no candidate: joint training 1\.47\d 1\.4\d\d to 1\.5\d\d < 0\.001 1\.356 ", text)
    assert "What 5 seeds are good for: large effects." in text


def test_what_does_it_is_a_table_where_a_control_was_run(page, tmp_path):
    assert "What does it?" not in words(page)
    arms = ("baseline", "dae_dropout", "continued")
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 61.0), "dae_dropout": (41.0, 29.0, 52.0)} | CONTROL, SEEDS, arm_noise=0.03)
    text = words(make_page(tmp_path, arms, SEEDS))
    assert re.search(r"What does it\? .*? dae_dropout continued the weakness alone 0\.837 0\.835 to 0\.838 < 0\.001 0\.867 5 ", text)


def test_where_the_distance_comes_from_is_a_table_and_perfect_priors_have_one(tmp_path):
    write_experiment(tmp_path, AS_IN_THE_PAPER | CONTROL)
    text = words(make_page(tmp_path, ("baseline", "dae", "continued")))
    # 11 + 34 / 2 less 11 + 33 / 2, of 61 - 11; and 52 less 11 + 29 / 2
    assert re.search(r"Price of the prior baseline – – – 33\.50 dae continued 1\.0 % 1\.0 % 26\.50 continued continued 1\.0 % ", text)
    assert "With a perfect prior, stage 1's decoder" in text and "With a perfect prior, stage 2's decoder" in text


def test_the_floor_stands_below_samples_and_perfect_priors_and_not_below_reconstructions(page):
    rows = re.findall(r'<tr class="floor">(.*?)</tr>', page, flags=re.DOTALL)
    assert len(rows) == 2
    quality, perfect = ([html.unescape(cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)] for row in rows)
    assert quality == ["–"] * 6 + ["11.00", "0.00040", "0.840", "0.800"]
    assert perfect == ["11.00", "0.00040", "0.840", "0.800"] * 2


def test_what_is_at_the_floor_has_a_dash_for_a_ratio_and_is_no_error(tmp_path):
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 61.0), "dae": (41.0, 29.0, 11.0)})
    edit_json(tmp_path / "metrics/evaluate/dae-0.json", lambda tree: tree["samples"].update(factor_tv=0.04))
    edit_json(tmp_path / "metrics/evaluate/baseline-0.json", lambda tree: tree["samples"].update(factor_tv=0.2))
    text = words(make_page(tmp_path))
    assert "No verdict: one seed gives none, and at this budget more would not either: raise evaluation.num_images" in text
    assert f"dae {FACTOR_TV.full_label} -0.160 (difference) – 0.200 no opinion" in text
    assert re.search(r"dae – – – 0\.180 – 1 undecided –", text)


def test_without_a_decoupled_arm_the_paper_has_nothing_to_be_held_against(tmp_path):
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 61.0)} | LANDMARKS)
    text = words(make_page(tmp_path, ("baseline", "joint_half")))
    assert "No arm with a frozen encoder was run beside baseline: there is nothing to hold against the paper." in text


@pytest.mark.parametrize(("seeds", "is_told"), [((0,), True), ((0, 1), True), (SEEDS, False)])
def test_more_seeds_are_told_of_only_where_they_would_help(tmp_path, seeds, is_told):
    write_experiment(tmp_path, AS_IN_THE_PAPER, seeds, arm_noise=0.3)
    assert (re.search(r"undecided about \d", words(make_page(tmp_path, seeds=seeds))) is not None) == is_told  # the control is missing
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 40.0), "dae": (41.0, 29.0, 35.0)}, seeds, arm_noise=0.3)
    text = words(make_page(tmp_path, seeds=seeds))
    assert "undecided –" in text and "more seed" not in text.lower().replace("more seeds dae", "")  # but for the column's head


def test_the_best_arm_of_a_column_is_marked_in_the_metrics_direction(tmp_path):
    write_experiment(tmp_path, seeds=SEEDS, arm_noise=0.02)
    marked = {cell for cell in re.findall(r'class="[^"]*best">([^<]*)<', make_page(tmp_path, seeds=SEEDS))}
    assert {"33.00", "29.00", "52.01"} <= marked  # distances: the smaller
    assert {"0.740", "0.640"} <= marked  # precision and recall: the larger
    assert not {"61.00", "41.01", "171.4", "3.000"} & marked  # worse ones, and what has no direction


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0, 1), 0.0), ((0, 1, 2), 0.3)])
def test_no_arm_is_marked_where_the_paired_interval_tells_nothing(tmp_path, seeds, noise):
    """Two seeds whose standard deviations are nil, or three that leave everything open."""
    write_experiment(tmp_path, seeds=seeds, arm_noise=noise)
    page = make_page(tmp_path, seeds=seeds)
    assert 'best">' not in page
    assert all(f"seed {seed}" in words(page) for seed in seeds if len(seeds) > 1)


def test_a_mark_needs_no_standard_deviation_smaller_than_the_difference(tmp_path):
    """All arms move together from seed to seed, by more than they differ."""
    write_experiment(tmp_path, seeds=(0, 1, 2), seed_step=20.0)
    page = make_page(tmp_path, seeds=(0, 1, 2))
    assert re.search(r'best">52\.0+<small>± 20\.0', page)


def test_names_from_outside_are_escaped(tmp_path):
    write_experiment(tmp_path)
    attack = "<script>alert(1)</script>"
    write_manifest(tmp_path / "artifacts/shards", [{"name": attack, "reason": attack}], path=attack)
    curve = tmp_path / "curves/stage1/dae-0.csv"
    curve.write_text(curve.read_text().replace("perceptual", attack))
    page = make_page(tmp_path, title=attack)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_names_that_are_no_characters_are_shown_by_their_bytes(tmp_path):
    """As Python reads names of files that are not UTF-8."""
    write_experiment(tmp_path)
    write_manifest(tmp_path / "artifacts/shards", [{"name": "a\udcff.png", "reason": "not an image"}], path="b\udcfe")
    page = make_page(tmp_path)
    page.encode()
    assert "a\\udcff.png" in page and "b\\udcfe" in page


def test_skipped_images_are_named_and_the_rest_counted(tmp_path):
    write_experiment(tmp_path)
    write_manifest(tmp_path / "artifacts/shards", [{"name": f"face-{number:02}.png", "reason": "not an image"} for number in range(23)])
    text = words(make_page(tmp_path))
    assert "face-19.png" in text
    assert "face-20.png" not in text
    assert "and 3 more" in text
    assert "Skipped 23" in text
    assert "Ignored 4 .txt files" in text


def test_alarms_are_told_with_what_to_do(page, tmp_path):
    assert "None was raised." in words(page)
    write_experiment(tmp_path)
    alarm = {"step": 1400, "found": "the <loss> rises", "advice": "halve stage1.learning_rate"}
    edit_json(tmp_path / "metrics/stage1/dae-0.json", lambda tree: tree.update(alarms={"weak_decoder": alarm}))
    text = words(make_page(tmp_path))
    assert "dae 0 stage1 weak decoder 1,400" in text and "halve stage1.learning_rate" in text
    assert "None was raised" not in text and "<loss>" not in make_page(tmp_path).replace("&lt;loss&gt;", "")


def test_steps_left_out_for_a_bad_loss_are_told(page, tmp_path):
    assert "not finite" not in words(page)
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics/stage1/dae-0.json", lambda tree: tree.update(num_skipped_steps=3))
    assert "dae, seed 0, stage1: 3" in words(make_page(tmp_path))


@pytest.mark.parametrize(
    "file",
    [
        "durations/shards.json",
        "durations/stage1/dae-0.json",
        "metrics/reference.json",
        "metrics/evaluate/dae-0.json",
        "metrics/stage1/dae-0.json",
        "metrics/prior/dae-0.json",
        "artifacts/shards/manifest.json",
        "artifacts/evaluate/dae-0/examples.json",
    ],
)
def test_every_key_that_is_missing_or_of_another_type_is_one_line(tmp_path, monkeypatch, file):
    grid = {"uri": "", "width": 1, "height": 1, "zoom": 8, "is_compressed": False}
    monkeypatch.setattr(reporting.images, "embed_grid", lambda path, is_compressed=False: grid)
    monkeypatch.setattr(reporting.story, "embed_strip", lambda path, tile: {"uri": "", "width": 1, "height": 1, "num_images": 1})
    monkeypatch.setattr(reporting.page, "draw_panels", lambda stage, curves: [])
    write_experiment(tmp_path)
    assert survives(tmp_path / file, lambda: make_page(tmp_path))[1] >= 5


def test_a_number_beyond_all_numbers_is_refused(tmp_path):
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics/stage1/dae-0.json", lambda tree: tree.update(num_images_seen=10**400))
    with pytest.raises(PipelineError, match=r"dae-0\.json: .*num_images_seen is 1000.*, not a finite number"):
        make_page(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("wall_seconds", 1e308), ("cpu_seconds", -1), ("output_bytes", 10**400), ("peak_memory_bytes", -1)]
)
def test_durations_that_none_has_are_refused(tmp_path, key, value):
    write_experiment(tmp_path)
    edit_json(tmp_path / "durations/stage1/dae-0.json", lambda tree: tree.update({key: value}))
    with pytest.raises(PipelineError, match=rf"stage1/dae-0\.json: {key}: .*dvc repro"):
        make_page(tmp_path)


def test_measures_whose_sum_is_no_number_are_refused(tmp_path):
    seeds = (0, 1)
    write_experiment(tmp_path, seeds=seeds)
    for seed in seeds:
        edit_json(tmp_path / f"metrics/evaluate/dae-{seed}.json", lambda tree: tree["samples"].update(recall=1.7e308))
    with pytest.raises(PipelineError, match=r"dae-0\.json: samples\.recall is 1\.7e\+308, not a finite number below 1e100"):
        make_page(tmp_path, seeds=seeds)


def test_what_the_prior_costs_has_a_column(page):
    assert "What the prior costs: samples to reconstructions" in words(page)


def test_the_same_files_make_the_same_page(page, tmp_path):
    write_experiment(tmp_path)
    assert make_page(tmp_path) == page


def test_an_arm_without_a_second_stage_has_no_curve_there(page):
    assert "No curve for baseline: no training steps in this stage." in words(page)


def test_missing_grids_and_curves_are_named_with_the_command_that_makes_them(tmp_path):
    write_experiment(tmp_path)
    (tmp_path / "artifacts/evaluate/dae-0/samples.png").unlink()
    with pytest.raises(PipelineError, match=r"dae-0/samples\.png: no such file; .*dvc repro evaluate@dae-0"):
        make_page(tmp_path)
    write_experiment(tmp_path)
    (tmp_path / "artifacts/evaluate/dae-0/examples.json").unlink()
    with pytest.raises(PipelineError, match=r"dae-0/examples\.json: no such file; .*dvc repro"):
        make_page(tmp_path)
    write_experiment(tmp_path)
    (tmp_path / "curves/prior/dae-0.csv").unlink()
    with pytest.raises(PipelineError, match=r"prior/dae-0\.csv: no such file; .*dvc repro prior@dae-0"):
        make_page(tmp_path)


def test_an_arm_is_described_by_what_it_does():
    assert "0.5 × the channels learn together for 750 steps, 1/2 of A's; then" in describe_arm(ARMS["dae"], "A", 1500)
    assert "a fresh full decoder learns for 750 steps" in describe_arm(ARMS["dae"], "A", 1500)
    assert "an auxiliary decoder of block dropout 0.25 learn" in describe_arm(ARMS["dae_block_dropout"], "A", 1500)
    assert (
        describe_arm(ARMS["baseline"], "A", 1500)
        == "Encoder and the full decoder learn together for 1,500 steps; there is no second stage."
    )
    full, fresh = ARMS["baseline"]["stage1"], ARMS["dae"]["stage2"]
    compressed = {"stage1": full | {"bottleneck": {"num_codes": 64}}, "stage2": ARMS["baseline"]["stage2"]}
    assert "for 1,500 steps, with a bottleneck of num_codes 64; there" in describe_arm(compressed, "A", 1500)
    noise = {"kind": "swapped", "strength": 0.2}
    robust = {"stage1": full, "stage2": fresh | {"start": "stage1", "learning_rate_factor": 0.3, "latent_noise": noise}}
    told = describe_arm(robust, "A", 1500)
    assert told.endswith("for 750 steps at 0.3 × the rate, with up to 20% of the tokens swapped for near ones, drawn anew for each image.")
    added = describe_arm(ARMS["dae_noise"], "A", 1500)
    assert "1/2 of A's, with noise of up to 1 standard deviations, drawn anew for each image, added to the latents; then" in added


def test_quantities_are_readable():
    assert [format_bytes(count) for count in (12, 3_400_000, 2.5e12)] == ["12 B", "3.4 MB", "2.5 TB"]
    assert [format_duration(seconds) for seconds in (3.14, 75.3, 7384)] == ["3.1 s", "1 min 15 s", "2 h 03 min"]
    assert [format_count(count) for count in (0, 9_999, 96_000, 1_234_567)] == ["0", "9,999", "96.0 k", "1.23 M"]
    assert flatten_parameters({"a": {"b": None, "c": [1, 2]}, "d": "x"}) == [("a.b", "null"), ("a.c", "[1, 2]"), ("d", "x")]
