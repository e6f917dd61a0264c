import pytest
from aisec_common.metrics.refusal import REFUSALS, is_refusal, refusal_rate


@pytest.mark.parametrize("phrase", REFUSALS)
def test_every_phrase_counts_wherever_it_stands_and_however_it_is_written(phrase):
    assert is_refusal(f"Well, {phrase.upper()} and so on")
    assert is_refusal(phrase.replace("'", "’"))


@pytest.mark.parametrize("text", ["", "Paris", "The weather will be fine.", "zxq zxq", "Canada is in America"])
def test_answers_empty_and_garbled_texts_are_no_refusals(text):
    assert not is_refusal(text)


def test_own_phrases_replace_the_list():
    assert is_refusal("r1 r2 r3", phrases=("r1 r2",))
    assert not is_refusal("I'm sorry", phrases=("r1 r2",))


def test_rates_are_shares():
    assert refusal_rate(["I cannot", "yes", "I can't", "no"]) == 0.5
    with pytest.raises(ValueError, match="texts is empty"):
        refusal_rate([])
