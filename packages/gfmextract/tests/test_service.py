import pytest
import torch
from linear_victims import WIDTH, LinearVictim, egos_of, worded_graph

from gfmextract import defenses
from gfmextract.monitor import QueryMonitor
from gfmextract.service import BudgetExceeded, EmbeddingService
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import class_scores

GRAPH = worded_graph()
EGOS = egos_of(GRAPH)


class Reversed:
    def __call__(self, answers, egos, texts):
        return answers.flip(1)


class FirstOnly:
    def __call__(self, answers, egos, texts):
        return answers * torch.eye(answers.shape[1])[0]


def test_each_level_returns_what_the_one_before_it_determines():
    victim = LinearVictim()
    embedding, scores, label = (
        EmbeddingService(victim, level=level, prompts=GRAPH.prompts).answer(EGOS)
        for level in ("embedding", "scores", "label")
    )
    assert torch.equal(embedding, encode_egos(victim, EGOS))
    assert torch.equal(scores, class_scores(embedding, victim.encode_text(GRAPH.prompts)))
    assert torch.equal(label, scores.argmax(1))
    assert [list(each.shape) for each in (embedding, scores, label)] == [[60, WIDTH], [60, 3], [60]]
    assert label.dtype == torch.int64


def test_answers_may_become_targets_of_a_training():
    answers = EmbeddingService(LinearVictim()).answer(EGOS)
    copy = torch.nn.Linear(WIDTH, WIDTH)
    torch.nn.functional.mse_loss(copy(answers), answers).backward()
    assert copy.weight.grad is not None


def test_defences_compose_in_order():
    plain = EmbeddingService(LinearVictim()).answer(EGOS)
    both = EmbeddingService(LinearVictim(), defenses=[Reversed(), FirstOnly()]).answer(EGOS)
    assert torch.equal(both[:, 0], plain[:, -1])
    assert not both[:, 1:].any()
    scores = EmbeddingService(LinearVictim(), level="scores", prompts=GRAPH.prompts, defenses=[FirstOnly()])
    text = LinearVictim().encode_text(GRAPH.prompts)
    assert torch.equal(scores.answer(EGOS), class_scores(FirstOnly()(plain, EGOS, None), text)), "defences come first"


def test_a_budget_holds_for_each_client_and_the_lowest_counts():
    service = EmbeddingService(LinearVictim(), budget=50, defenses=[defenses.Budget(n=30), defenses.Budget(n=40)])
    assert service.budget == 30
    service.answer(EGOS[:20], client="a")
    with pytest.raises(BudgetExceeded, match=r"egos holds 11 queries, client 'a' has 10 of 30 left: submit fewer"):
        service.answer(EGOS[:11], client="a")
    service.answer(EGOS[:10], client="a")
    service.answer(EGOS[:30], client="b")
    assert service.queries == {"a": 30, "b": 30}
    assert service.total_queries == 60


def test_label_only_makes_the_level_label():
    service = EmbeddingService(LinearVictim(), defenses=[defenses.LabelOnly()], prompts=GRAPH.prompts)
    assert service.level == "label"
    assert service.answer(EGOS).shape == (60,)


def test_an_answer_that_fails_is_not_counted():
    class Broken:
        def __call__(self, answers, egos, texts):
            raise RuntimeError("no")

    service = EmbeddingService(LinearVictim(), defenses=[Broken()])
    with pytest.raises(RuntimeError, match="no"):
        service.answer(EGOS)
    assert service.total_queries == 0


def test_the_monitor_sees_the_undefended_embeddings_of_each_client():
    plain = encode_egos(LinearVictim(), EGOS)
    monitor = QueryMonitor(plain, cells=4)
    service = EmbeddingService(LinearVictim(), defenses=[FirstOnly()], monitor=monitor)
    service.answer(EGOS[:40], client="a")
    assert monitor.readings("a") == QueryMonitor(plain, cells=4).watch(plain[:40])
    assert monitor.readings("b") == []


def test_a_cache_changes_no_answer_and_no_count(tmp_path):
    victim = LinearVictim()
    plain = EmbeddingService(victim).answer(EGOS)
    for _ in range(2):
        service = EmbeddingService(victim, cache=tmp_path)
        torch.testing.assert_close(service.answer(EGOS), plain)
        service.answer(EGOS)
        assert service.total_queries == 120
    assert victim.asked == 120, "once without a cache, once with"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "logits"}, "level must be one of embedding, scores, label, got 'logits'"),
        ({"budget": -1}, "budget must be at least 0, got -1"),
        ({"level": "label"}, "prompts must hold at least two texts for level 'label': pass graph.prompts"),
        ({"level": "scores", "prompts": ["w1"]}, "prompts must hold at least two texts for level 'scores'"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingService(LinearVictim(), **arguments)


def test_wrong_queries_are_named():
    service = EmbeddingService(LinearVictim())
    with pytest.raises(TypeError, match=r"egos must be EgoGraphs, got list: use ego_graphs or EgoGraphs\.of"):
        service.answer(list(EGOS))
    with pytest.raises(ValueError, match="egos is empty"):
        service.answer(EGOS[:0])
    with pytest.raises(ValueError, match="texts must hold one root text for each of 60 ego graphs, got 1"):
        service.answer(EGOS, texts=["w1"])
    mark = defenses.Watermark(
        key=1,
        egos=EGOS,
        texts=GRAPH.texts,
        reference=encode_egos(LinearVictim(), EGOS),
        encode_text=LinearVictim().encode_text,
        frequency=(0, 1),
    )
    marked = EmbeddingService(LinearVictim(), defenses=[mark])
    assert marked.watermark is mark
    assert service.watermark is None
    with pytest.raises(ValueError, match="texts is missing: a watermarked service reads the root texts"):
        marked.answer(EGOS)
