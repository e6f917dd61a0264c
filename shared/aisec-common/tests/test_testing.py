from dataclasses import replace

import pytest
from aisec_common.rooms import choose_rooms
from aisec_common.testing import MemoryLog, RoomContract, made_up_outcomes, verdict_of


class Contract(RoomContract):
    room = "toy"
    __test__ = False


def test_the_study_of_the_toy_keeps_the_contract(toy):
    contract = Contract()
    contract.test_no_claim_holds_on_noise()
    contract.test_a_planted_effect_holds()


def test_a_claim_whose_control_is_never_asked_is_caught(toy, monkeypatch):
    study = choose_rooms(["toy"])[0].load()
    loose = replace(study.claims[0], over=None, control=None, margin=-1.0)
    object.__setattr__(loose, "margin", 0.0)  # what Claim itself refuses: no control and no margin below 0
    monkeypatch.setattr("aisec_common.rooms.Room.load", lambda room: replace(study, claims=(loose,)))
    with pytest.raises(AssertionError):
        Contract().test_no_claim_holds_on_noise()


def test_a_claim_that_reads_another_arm_is_caught(toy, monkeypatch):
    study = choose_rooms(["toy"])[0].load()
    blind = replace(study.claims[0], metric=None, over=None, effect=lambda m: m["baseline"]["value"] - 1)
    monkeypatch.setattr("aisec_common.rooms.Room.load", lambda room: replace(study, claims=(blind,)))
    contract = Contract()
    with pytest.raises(AssertionError, match="plants"):
        contract.test_a_planted_effect_holds()
    contract.plants = {blind.text: {"value": (1.0, 1.0)}}
    with pytest.raises(AssertionError):
        contract.test_a_planted_effect_holds()


def test_a_claim_on_a_ratio_keeps_the_contract(toy, monkeypatch):
    study = choose_rooms(["toy"])[0].load()
    ratio = replace(
        study.claims[0], metric=None, over=None, effect=lambda m: m["method"]["value"] / m["baseline"]["value"] - 1
    )
    monkeypatch.setattr("aisec_common.rooms.Room.load", lambda room: replace(study, claims=(ratio,)))
    contract = Contract()
    contract.plants = {ratio.text: {"value": (5.0, 0.1)}}
    contract.test_no_claim_holds_on_noise()
    contract.test_a_planted_effect_holds()


def test_a_seed_that_draws_from_a_global_generator_is_caught(toy, tmp_path):
    Contract().test_a_seed_gives_the_same_numbers_in_any_order_of_arms(tmp_path / "good")
    path = toy.folder / "toyroom" / "study.py"
    path.write_text(path.read_text().replace("rng = numpy_rng(seed, arm)", "import numpy; rng = numpy.random"))
    with pytest.raises(AssertionError):
        Contract().test_a_seed_gives_the_same_numbers_in_any_order_of_arms(tmp_path / "bad")


def test_planted_differences_have_the_t_value_they_say(toy):
    import numpy as np

    study = choose_rooms(["toy"])[0].load()
    claim = study.claims[0]
    made = made_up_outcomes(study, claim, {"value": (5.0, 1.0)}, 3.0)
    effects = np.array([claim.effect_of({arm: o.metrics for arm, o in arms.items()}) for arms in made.values()])
    assert effects.mean() / (effects.std(ddof=1) / len(effects) ** 0.5) == pytest.approx(3.0)
    assert verdict_of(study, claim, made) == "holds"


def test_the_contract_refuses_a_room_without_prefix(toy):
    with pytest.raises(AssertionError):
        Contract().test_names()


def test_wrong_input_must_be_listed_and_must_raise_one_line(toy):
    contract = Contract()
    with pytest.raises(AssertionError, match="list what the room must refuse"):
        contract.test_wrong_input_raises()

    def two_lines():
        raise ValueError("values are\nwrong")

    for call in (lambda: None, two_lines):
        contract.wrong_inputs = ((call, "values"),)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            contract.test_wrong_input_raises()


def test_the_memory_log_keeps_what_a_trial_says_and_minds_its_manners():
    log = MemoryLog()
    log.sample("a", x=1)
    log.data("rows", "text")
    log.progress(1, 2)
    assert (log.samples, log.hashes, log.done) == ({"a": {"x": 1}}, {"rows": "text"}, [0.5])
    with pytest.raises(AssertionError):
        log.sample("a", x=2)
    with pytest.raises(AssertionError):
        log.progress(3, 2)
