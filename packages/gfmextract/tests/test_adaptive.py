import networkx
import pytest
import torch
from linear_victims import WIDTH, LinearVictim, egos_of, word_vectors, worded_graph
from torch_geometric.transforms import AddRandomWalkPE

from gfmextract.adaptive import averaged_answers, covert_answers, finetuned, further_queries, pca_denoised, topic_order
from gfmextract.config import ExtractionConfig
from gfmextract.defenses import Noise, Watermark
from gfmextract.monitor import QueryMonitor
from gfmextract.service import BudgetExceeded, EmbeddingService
from gfmextract.surrogate import Surrogate
from gfmextract.victim import encode_egos

GRAPH = worded_graph()
EGOS = egos_of(GRAPH)
PLAIN = encode_egos(LinearVictim(), EGOS)


def error(answers):
    return float((answers - PLAIN).square().mean().sqrt() / PLAIN.square().mean().sqrt())


def test_repeats_are_counted_and_average_fresh_noise_out():
    service = EmbeddingService(LinearVictim(), defenses=[Noise(sigma=1.0, mode="fresh")])
    assert error(averaged_answers(service, EGOS, repeats=25)) == pytest.approx(0.2, rel=0.15)
    assert service.total_queries == 25 * 60


def test_keyed_noise_stands_plain_repeats_and_falls_to_jittered_ones():
    service = EmbeddingService(LinearVictim(), defenses=[Noise(sigma=1.0)])
    assert error(averaged_answers(service, EGOS, repeats=16)) == pytest.approx(1.0, rel=0.15)
    assert error(averaged_answers(service, EGOS, repeats=16, jitter=0.05)) == pytest.approx(0.25, rel=0.2)


def test_variants_are_induced_subgraphs_with_their_roots():
    many, origin = further_queries(EGOS, factor=4, drop=0.5, seed=1)
    assert len(many) == 240
    assert torch.equal(origin, torch.arange(60).repeat(4))
    assert torch.equal(many.roots, EGOS.roots[origin])
    dropped = 0
    for i, (variant, whole) in enumerate(zip(many, EGOS[origin], strict=True)):
        nodes, before = variant.node_id.tolist(), whole.node_id.tolist()
        kept = networkx.DiGraph([(before[a], before[b]) for a, b in whole.edge_index.T.tolist()]).subgraph(nodes)
        edges = {(nodes[a], nodes[b]) for a, b in variant.edge_index.T.tolist()}
        assert edges == set(kept.edges) | ({(nodes[0], nodes[0])} if not kept.edges else set())
        assert variant.edge_index.shape[1] == len(edges)
        assert torch.equal(variant.x, GRAPH.x[variant.node_id])
        torch.testing.assert_close(AddRandomWalkPE(8, "slow")(variant.clone()).slow, variant.pe)
        dropped += (len(before) - len(nodes)) if i >= 60 else 0
        assert i >= 60 or nodes == before
    assert dropped / (3 * (len(EGOS.x) - 60)) == pytest.approx(0.5, abs=0.1)


def test_denoising_keeps_the_signal_and_drops_the_noise():
    rng = torch.Generator().manual_seed(0)
    signal = torch.randn(200, 3, generator=rng) @ torch.randn(3, 40, generator=rng) + 2.0
    noisy = signal + 0.3 * torch.randn(200, 40, generator=rng)
    cleaned = pca_denoised(noisy)
    assert torch.linalg.matrix_rank((cleaned - cleaned.mean(0)).double(), rtol=1e-4) == 3
    assert (cleaned - signal).norm() < 0.4 * (noisy - signal).norm()
    torch.testing.assert_close(pca_denoised(noisy, rank=40), noisy, atol=1e-4, rtol=1e-4)


def test_topic_order_puts_off_a_coverage_alarm():
    graph = worded_graph(240, length=2)
    egos = egos_of(graph)
    monitor = QueryMonitor(graph.x, cells=16)
    order = topic_order(egos, topics=12)
    assert order.sort().values.tolist() == list(range(240))
    as_they_stand, by_topic = (monitor.watch(each)[3].coverage for each in (graph.x, graph.x[order]))
    assert by_topic < 0.8 < as_they_stand


def test_covert_answers_are_the_plain_ones_in_the_order_of_the_queries():
    monitor = QueryMonitor(PLAIN, cells=4, step=2)
    service = EmbeddingService(LinearVictim(), monitor=monitor)
    cover = EGOS[40:]
    answers = covert_answers(
        service, EGOS[:40], order=torch.arange(39, -1, -1), cover=cover, clients=("a", "b", "c"), seed=3
    )
    torch.testing.assert_close(answers, PLAIN[:40])
    assert service.queries == {"a": 20, "b": 20, "c": 20}
    assert len(monitor.readings("a")) == 1


def test_own_queries_keep_their_order_among_the_cover():
    class Listening(EmbeddingService):
        def answer(self, egos, **arguments):
            self.heard = egos.roots.tolist()
            return super().answer(egos, **arguments)

    service = Listening(LinearVictim())
    order = topic_order(EGOS[:40], topics=4)
    covert_answers(service, EGOS[:40], order=order, cover=EGOS[40:], seed=3)
    assert [root for root in service.heard if root < 40] == order.tolist()
    assert sorted(service.heard) == list(range(60))
    assert max(service.heard[:30]) >= 40, "cover stands among the queries"


def test_texts_travel_with_their_queries():
    watermark = Watermark(
        key=1,
        egos=EGOS,
        texts=GRAPH.texts,
        reference=PLAIN,
        encode_text=word_vectors,
        triggers=8,
        m=2,
        frequency=(0.01, 0.3),
    )
    expected = EmbeddingService(LinearVictim(), defenses=[watermark]).answer(EGOS[:40], texts=GRAPH.texts[:40])
    assert not torch.allclose(expected, PLAIN[:40])
    got = covert_answers(
        EmbeddingService(LinearVictim(), defenses=[watermark]),
        EGOS[:40],
        texts=GRAPH.texts[:40],
        cover=EGOS[40:],
        cover_texts=GRAPH.texts[40:],
        clients=("a", "b"),
    )
    torch.testing.assert_close(got, expected)


def test_accounts_get_around_a_budget_and_one_does_not():
    with pytest.raises(BudgetExceeded):
        covert_answers(EmbeddingService(LinearVictim(), budget=20), EGOS)
    answers = covert_answers(EmbeddingService(LinearVictim(), budget=20), EGOS, clients=("a", "b", "c"))
    torch.testing.assert_close(answers, PLAIN)


def test_fine_tuning_draws_a_copy_to_the_texts_and_leaves_the_original():
    config = ExtractionConfig(backbone="mlp", layers=1, hidden=16)
    surrogate = Surrogate(config, features=WIDTH, positions=8, dimension=WIDTH)
    before = encode_egos(surrogate, EGOS)
    text = word_vectors(GRAPH.texts)
    tuned = finetuned(surrogate, EGOS, text, epochs=40)
    assert torch.equal(encode_egos(surrogate, EGOS), before)
    near, was = (
        torch.nn.functional.cosine_similarity(each, text).mean() for each in (encode_egos(tuned, EGOS), before)
    )
    assert near > was + 0.2
    assert tuned.cost.seconds > 0 == surrogate.cost.seconds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda service: averaged_answers(service, EGOS, repeats=0),
            "repeats must be at least 1 and jitter at least 0",
        ),
        (lambda service: further_queries(EGOS, factor=0), r"factor must be at least 1 and drop in \[0, 1\), got 0"),
        (lambda service: further_queries(EGOS, factor=2, drop=1.0), r"drop in \[0, 1\), got 2 and 1.0"),
        (lambda service: pca_denoised(PLAIN, rank=0), "rank must be at least 1, got 0"),
        (lambda service: pca_denoised(PLAIN[:1]), r"answers must be \[Q, d\] with at least two rows, got \[1, 32\]"),
        (lambda service: topic_order(EGOS, topics=61), "topics must lie between 1 and the 60 egos, got 61"),
        (lambda service: covert_answers(service, EGOS, clients=()), "clients is empty: name at least one account"),
        (lambda service: covert_answers(service, EGOS, order=torch.zeros(60)), "order must hold each of the 60 ego"),
        (
            lambda service: covert_answers(service, EGOS, texts=GRAPH.texts, cover=EGOS),
            "texts and cover_texts must be given both or neither",
        ),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(EmbeddingService(LinearVictim()))


def test_fine_tuning_needs_a_text_for_each_ego_graph():
    surrogate = Surrogate(ExtractionConfig(backbone="mlp"), features=WIDTH, positions=8, dimension=WIDTH)
    with pytest.raises(ValueError, match=r"text_vectors must be \[60, 32\], got \[60, 3\]"):
        finetuned(surrogate, EGOS, torch.ones(60, 3))
