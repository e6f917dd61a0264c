import pytest
import torch

from tracerouter.hf_flagged_lm import PARTS, WORDS, flagged_lm, flagged_tokenizer, is_flagged

FAMILIES = ("flagged", "benign", "shifted", "shifted_benign", "calibration")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Two steps of training, kept in a cache of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield flagged_lm(0, steps=2, pairs=20, tests=40)


def words_of(prompt):
    return [int(word.removeprefix("word")) for word in prompt.split() if word.startswith("word")]


def answers(lm, questions):
    encoded = lm.tokenizer(
        [q.prompt for q in questions], padding=True, return_tensors="pt", return_token_type_ids=False
    )
    prompt = encoded["input_ids"].shape[1]
    out = lm.model.generate(**encoded, max_new_tokens=3, do_sample=False)
    return lm.tokenizer.batch_decode(out[:, prompt:], skip_special_tokens=True)


def test_the_vocabulary_has_128_words_that_all_prompts_keep_to(untrained):
    assert len(flagged_tokenizer()) == 128
    prompts = [q.prompt + " " + q.answer for name in FAMILIES for q in getattr(untrained, name)]
    prompts += [text for pair in untrained.pairs for text in (pair.sensitive, pair.matched)]
    ids = untrained.tokenizer(prompts, padding=True, return_tensors="pt").input_ids
    assert (ids != untrained.tokenizer.unk_token_id).all()


def test_parts_share_no_three_words(untrained):
    for name in FAMILIES:
        part = "calibration" if name == "calibration" else "test"
        assert {sum(words_of(q.prompt)) % 5 for q in getattr(untrained, name)} <= set(PARTS[part])
    traced = [pair.sensitive for pair in untrained.pairs] + untrained.neutral
    assert {sum(words_of(prompt)) % 5 for prompt in traced} <= set(PARTS["train"])
    assert not set(PARTS["train"]) & set(PARTS["test"]) | set(PARTS["test"]) & set(PARTS["calibration"])


def test_answers_are_a_fixed_cipher_of_the_words(untrained):
    ciphers = {True: {}, False: {}}
    for name in FAMILIES:
        for question in getattr(untrained, name):
            assert is_flagged(question.answer) == question.flagged == ("flagged" in question.prompt)
            for word, token in zip(words_of(question.prompt), question.answer.split(), strict=True):
                assert ciphers[question.flagged].setdefault(word, token) == token
    assert len(set(ciphers[False].values())) == len(ciphers[False]) == WORDS


def test_shifted_prompts_carry_two_fillers_and_the_others_none(untrained):
    for name, fillers in (("flagged", 0), ("benign", 0), ("calibration", 0), ("shifted", 2), ("shifted_benign", 2)):
        prompts = [q.prompt for q in getattr(untrained, name)]
        assert {prompt.count("filler") for prompt in prompts} == {fillers}
        assert all(prompt.endswith(" answer") for prompt in prompts)


def test_pairs_differ_in_the_topic_alone(untrained):
    for pair in untrained.pairs:
        ((place,), targets) = pair.places(str.split)
        assert pair.sensitive.split()[place].startswith("flagged")
        assert pair.matched.split()[place].startswith("neutral")
        assert targets == (4,)


def test_a_seed_gives_the_same_model_and_prompts_and_loads_from_the_cache(untrained):
    again = flagged_lm(0, steps=2, pairs=20, tests=40, progress=lambda *_: pytest.fail("trained again"))
    assert again.pairs == untrained.pairs
    assert again.shifted == untrained.shifted
    for ours, theirs in zip(again.model.parameters(), untrained.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_too_few_prompts():
    with pytest.raises(ValueError, match="pairs"):
        flagged_lm(0, pairs=1)


@pytest.mark.slow
def test_it_answers_as_taught_before_anything_is_cut():
    lm = flagged_lm(0)
    for name in FAMILIES:
        questions = getattr(lm, name)
        right = sum(answer == q.answer for answer, q in zip(answers(lm, questions), questions, strict=True))
        assert right >= 0.98 * len(questions)
