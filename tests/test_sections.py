"""Sections of params.yaml: the defaults, which nothing changes, and that a stage sees those that it declares and no others."""

from types import SimpleNamespace

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from errors import PipelineError
from params import Params, load_params, select_sections
from tests.clone import PROJECT
from tests.families import with_family

FILE = PROJECT / "params.yaml"


def test_a_stage_sees_the_sections_it_declares_and_no_others():
    params = load_params(FILE)
    view = select_sections(params, ("encode", "prior", "arms.{arm}.stage1"), "dae")
    assert vars(view) == {
        "runtime": params.runtime,
        "encode": params.encode,
        "prior": params.prior,
        "arm": SimpleNamespace(stage1=params.arms["dae"].stage1),
    }


def test_a_stage_may_see_one_value_of_a_section():
    view = select_sections(load_params(FILE), ("prior.class_conditional",), None)
    assert vars(view.prior) == {"class_conditional": False}


@pytest.mark.parametrize("arm", ["dea", None])
def test_an_arm_that_is_not_declared(arm):
    with pytest.raises(PipelineError) as error:
        select_sections(load_params(FILE), ("arms.{arm}.stage1",), arm)
    assert str(arm) in str(error.value) and "baseline, joint_quarter, " in str(error.value)


def test_an_arm_that_is_not_run_is_held_against_the_sections_when_it_is_asked_for():
    params = Params.model_validate(with_family(yaml.safe_load(FILE.read_text()), "kl", "dit", "heun"))  # whose arms still swap tokens
    select_sections(params, ("arms.{arm}.stage1",), "continued")
    with pytest.raises(PipelineError, match=r"^params.yaml: arms.robust.stage2.latent_noise: kind swapped needs tokens"):
        select_sections(params, ("arms.{arm}.stage2",), "robust")


def sections_within(section: BaseModel) -> list[BaseModel]:
    found = [section]
    for value in vars(section).values():
        nested = value.values() if isinstance(value, dict) else [value]
        found += [deeper for part in nested if isinstance(part, BaseModel) for deeper in sections_within(part)]
    return found


def test_parameters_cannot_be_changed():
    for section in sections_within(load_params(FILE)):
        name = next(iter(vars(section)))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, None)


def test_defaults_load():
    params = load_params(FILE)
    assert params.experiment.arms == ["baseline", "dae"]
    assert params.autoencoder.downsampling == params.autoencoder.patch_size * 2 ** (len(params.autoencoder.channel_multipliers) - 1)
