import pytest
import torch
from linear_victims import LinearVictim, egos_of, renumbered, worded_graph

from gfmextract.answer_cache import AnswerCache, Remembered
from gfmextract.victim import encode_egos


def test_a_subgraph_is_encoded_once_even_in_another_process_and_renumbered(tmp_path):
    victim, egos = LinearVictim(), egos_of(worded_graph())
    expected = encode_egos(victim, egos)
    victim.asked = 0
    cache = AnswerCache(tmp_path, victim)
    torch.testing.assert_close(cache.answers(egos[:40]), expected[:40])
    torch.testing.assert_close(cache.answers(egos[20:]), expected[20:])
    assert victim.asked == len(cache) == 60
    later = AnswerCache(tmp_path, victim)
    torch.testing.assert_close(later.answers(renumbered(egos, 1)), expected)
    assert victim.asked == 60


def test_repeats_within_one_call_are_encoded_once(tmp_path):
    victim, egos = LinearVictim(), egos_of(worded_graph())
    twice = egos[torch.tensor([4, 4, 9])]
    answers = AnswerCache(tmp_path, victim).answers(twice)
    assert victim.asked == 2
    assert torch.equal(answers[0], answers[1])
    torch.testing.assert_close(answers, encode_egos(victim, twice))


def test_another_victim_gets_answers_of_its_own(tmp_path):
    egos = egos_of(worded_graph())
    for seed in (0, 1):
        victim = LinearVictim(seed)
        torch.testing.assert_close(AnswerCache(tmp_path, victim).answers(egos), encode_egos(victim, egos))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_torn_file_is_encoded_again(tmp_path):
    victim, egos = LinearVictim(), egos_of(worded_graph())
    expected = AnswerCache(tmp_path, victim).answers(egos)
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    torch.testing.assert_close(AnswerCache(tmp_path, victim).answers(egos), expected)


class Plain:
    """A victim that is no module."""

    def __init__(self, seed=0):
        self.inner, self.told = LinearVictim(seed), []

    def encode_graph(self, batch):
        return self.inner.encode_graph(batch)

    def encode_text(self, texts):
        self.told += texts
        return self.inner.encode_text(texts)


def test_a_remembered_victim_is_asked_once_about_each_subgraph_and_text():
    plain, egos = Plain(), egos_of(worded_graph())
    victim = Remembered(plain)
    expected = encode_egos(LinearVictim(), egos)
    for asked in (egos[:40], egos, renumbered(egos, 1)):
        torch.testing.assert_close(encode_egos(victim, asked), expected[: len(asked)])
    assert plain.inner.asked == 60
    for texts in (["w0", "w1", "w0"], ["w1", "w2"]):
        assert torch.equal(victim.encode_text(texts), LinearVictim().encode_text(texts))
    assert plain.told == ["w0", "w1", "w2"]
    torch.nn.Linear(32, 1)(encode_egos(victim, egos)).sum().backward()  # answers may become targets of a training


def test_answers_of_a_remembered_module_outlive_it(tmp_path):
    victim, egos = LinearVictim(), egos_of(worded_graph())
    expected = encode_egos(Remembered(victim, tmp_path), egos)
    assert torch.equal(encode_egos(Remembered(victim, tmp_path), egos), expected)
    assert victim.asked == 60
    encode_egos(Remembered(Plain(), tmp_path), egos)  # nothing tells it from another, so it is asked
    assert len(list(tmp_path.iterdir())) == 1


def test_victims_are_told_apart_by_weights_or_else_by_answers():
    egos, module = [egos_of(worded_graph())], LinearVictim()
    assert Remembered(module).hash(egos, ["w0"]) == Remembered(LinearVictim()).hash(egos, ["w0"])
    assert not module.asked
    of_plain = Remembered(Plain()).hash(egos, ["w0"])
    assert of_plain == Remembered(Plain()).hash(egos, ["w0"])
    others = {Remembered(kind(1)).hash(egos, ["w0"]) for kind in (LinearVictim, Plain)}
    assert len({*others, of_plain, Remembered(module).hash(egos, ["w0"])}) == 4


def test_a_victim_without_weights_to_hash_is_refused(tmp_path):
    class Remote:
        def encode_graph(self, batch): ...

        def encode_text(self, texts): ...

    with pytest.raises(ValueError, match="cache cannot tell Remote from another victim"):
        AnswerCache(tmp_path, Remote())
