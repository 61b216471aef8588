"""Arms are known by their settings: which is how weak, which is the gates' control, and which two differ by one cause."""

from params import load_params
from reporting.arms import departure, find_causes, find_control, is_candidate
from stage import PROJECT
from tests.reporting.experiment import ARMS

REFIT = {"stage1": ARMS["continued"]["stage1"], "stage2": ARMS["dae"]["stage2"]}


def renamed(arms: dict) -> dict:
    return {f"arm {number}": arm for number, arm in enumerate(arms.values())}


def test_departures_are_ordered_by_width_then_dropout_then_noise():
    order = sorted(ARMS, key=lambda name: departure(ARMS[name]))
    assert order == ["baseline", "continued", "robust", "dae_noise", "dae_dropout", "dae"]


def test_candidates_are_weak_and_frozen():
    assert {name for name, arm in ARMS.items() if is_candidate(arm)} == {"dae", "dae_dropout", "dae_noise", "robust"}
    assert not is_candidate({"stage1": ARMS["dae"]["stage1"], "stage2": ARMS["baseline"]["stage2"]})


def test_the_control_is_known_by_its_settings():
    assert find_control(ARMS) == "continued"
    without = {name: arm for name, arm in ARMS.items() if name != "continued"}
    assert find_control(without) is None
    assert find_control(without | {"anything": REFIT}) == "anything"
    stage1, stage2 = ARMS["continued"]["stage1"], ARMS["continued"]["stage2"]
    for arm in (
        {"stage1": stage1 | {"bottleneck": {"num_codes": 64}}, "stage2": stage2},
        {"stage1": stage1 | {"num_steps": 1500}, "stage2": stage2},  # the baseline and more: says nothing of convergence
        {"stage1": stage1, "stage2": stage2 | {"num_steps": 0}},
    ):
        assert find_control(without | {"anything": arm}) is None


def test_of_two_controls_that_of_the_first_candidates_decoder_is_taken():
    def control(*names: str) -> str | None:
        return find_control({name: (ARMS | {"refit": REFIT})[name] for name in ("baseline", *names)})

    assert control("continued", "refit", "dae") == control("dae", "dae_dropout", "continued", "refit") == "refit"
    assert control("refit", "continued", "dae_dropout") == control("dae_dropout", "dae", "refit", "continued") == "continued"
    assert control("dae", "continued") == control("continued", "refit") == "continued"


def test_the_arms_of_params_yaml_separate_the_causes_whatever_they_are_called():
    arms = {name: arm.model_dump() for name, arm in load_params(PROJECT / "params.yaml").arms.items()}
    weak = ["dae", "dae_dropout", "dae_noise", "robust"]
    causes = {
        ("dae", "refit", "the weakness alone"),
        ("dae_dropout", "continued", "the weakness alone"),
        ("dae_noise", "continued", "the weakness alone"),
        ("robust", "continued", "the noise alone"),
        ("robust", "joint_noise", "the freezing alone"),
        *((name, "compressed", "not only compression") for name in weak),
    }
    assert set(find_causes(arms)) == causes
    names = dict(zip(arms, renamed(arms), strict=True))
    assert set(find_causes(renamed(arms))) == {(names[arm], names[control], cause) for arm, control, cause in causes}


def test_two_differences_at_once_are_no_cause():
    dae, robust = ARMS["dae"], ARMS["robust"]
    noise = robust["stage2"]["latent_noise"]
    joint = {"stage1": ARMS["baseline"]["stage1"] | {"latent_noise": noise | {"strength": 0.4}}, "stage2": ARMS["baseline"]["stage2"]}
    both = {"stage1": ARMS["dae_dropout"]["stage1"], "stage2": robust["stage2"]}
    base = {"baseline": ARMS["baseline"]}
    assert find_causes(base | {"dae": dae, "continued": ARMS["continued"]}) == []  # weak, and with a fresh decoder
    assert find_causes(base | {"robust": robust, "joint": joint}) == []  # another strength
    assert find_causes(base | {"both": both, "continued": ARMS["continued"]}) == []  # weak, and noise in stage 2
    assert find_causes(base | {"both": both, "robust": robust}) == [("both", "robust", "the weakness alone")]
    assert find_causes(base | {"both": both, "dropout": ARMS["dae_dropout"]}) == [("both", "dropout", "the noise alone")]
    longer = {"stage1": dae["stage1"], "stage2": dae["stage2"] | {"num_steps": 1000, "num_adversarial_steps": 9}}
    assert find_causes(base | {"dae": longer, "refit": REFIT}) == [("dae", "refit", "the weakness alone")]  # as many operations
