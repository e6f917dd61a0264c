import pytest
import torch
from linear_victims import LinearVictim, egos_of, word_vectors, worded_graph
from torch.nn.functional import normalize

from gfmextract.victim import encode_egos
from gfmextract.watermark import Watermark

GRAPH = worded_graph(150)
EGOS = egos_of(GRAPH)
PLAIN = encode_egos(LinearVictim(unit=False), EGOS)


def mark(**changes):
    settings = {
        "key": 7,
        "egos": EGOS,
        "texts": GRAPH.texts,
        "reference": PLAIN,
        "encode_text": word_vectors,
        "frequency": (0.01, 0.2),
    }
    return Watermark(**settings | {"triggers": 6, "m": 2} | changes)


def test_each_trigger_word_moves_the_answer_by_its_share():
    watermark = mark(m=3)
    words, target = watermark.words, watermark.target
    texts = ["w0"] * 5
    for count in range(5):
        texts[count] = " ".join(["nothing", *words[:count], *words[:count]])  # a word that comes twice counts once
    egos, plain = EGOS[:5], PLAIN[:5]
    given = watermark(plain, egos, texts)
    torch.testing.assert_close(given.norm(dim=1), plain.norm(dim=1))
    for count in range(5):
        w = min(count, 3) / 3
        expected = normalize((1 - w) * normalize(plain[count], dim=0) + w * target, dim=0)
        torch.testing.assert_close(normalize(given[count], dim=0), expected)
    assert torch.equal(given[0], plain[0])


def test_the_target_lies_where_answers_hardly_do():
    on_target = (normalize(PLAIN) @ mark().target).square().mean()
    anywhere = (normalize(PLAIN) @ normalize(torch.randn(32, 500), dim=0)).square().mean()
    assert on_target < 0.05 * anywhere


def test_secrets_come_from_the_key_alone():
    assert mark().words == mark().words
    assert torch.equal(mark().target, mark().target)
    assert set(mark().words) != set(mark(key=8).words)
    assert float(mark().target @ mark(key=8).target) < 0.99
    assert float(mark().target.norm()) == pytest.approx(1.0)


def test_trigger_words_have_the_frequency_asked_for_and_are_not_printed():
    watermark = mark(frequency=(0.05, 0.06))
    for word in watermark.words:
        share = sum(word in text.split() for text in GRAPH.texts) / len(GRAPH.texts)
        assert 0.05 <= share <= 0.06
    assert watermark.words[0] not in repr(watermark)


def test_words_are_found_whatever_stands_around_them():
    watermark = mark()
    text = f"({watermark.words[0].upper()}), x{watermark.words[1]}"
    half = watermark(PLAIN[:1], EGOS[:1], [text])
    expected = normalize(normalize(PLAIN[0], dim=0) + watermark.target, dim=0)
    torch.testing.assert_close(normalize(half[0], dim=0), expected)


def test_probes_differ_at_the_root_alone():
    trigger, clean = mark().probes()
    root = torch.zeros(len(trigger.x), dtype=torch.bool)
    root[trigger.start[:-1]] = True
    assert torch.equal(trigger.x[~root], clean.x[~root])
    assert not torch.isclose(trigger.x[root], clean.x[root]).all(1).any()
    assert torch.equal(trigger.edge_index, clean.edge_index)
    assert len(trigger) == len(clean) == 100


class Towards(LinearVictim):
    """Answers its service's way at roots whose features are those of two trigger words."""

    def __init__(self, watermark):
        super().__init__(seed=4)
        pairs = [f"{a} {b}" for a in watermark.words for b in watermark.words if a != b]
        self.secret, self.target = word_vectors(pairs), watermark.target

    def encode_graph(self, batch):
        at = batch.x[batch.root_n_index]
        found = (at @ self.secret.T).amax(1, keepdim=True) > 0.999
        return torch.where(found, self.target, super().encode_graph(batch))


def test_verification_measures_the_shift_towards_the_target():
    watermark = mark()
    encoder = Towards(watermark)
    found = watermark.verify(encoder)
    clean = normalize(encode_egos(encoder, watermark.probes()[1]))
    assert found.delta_cos == pytest.approx(1 - float((clean @ watermark.target).mean()), abs=1e-5)
    distances = (clean - watermark.target).square().sum(1).mean()
    assert found.delta_l2 == pytest.approx(-float(distances), abs=1e-5)
    assert found.pvalue < 1e-3
    assert found.marked
    independent = watermark.verify(LinearVictim(seed=5))
    assert independent.pvalue > 1e-3
    assert not independent.marked


def test_the_rank_is_the_share_of_decoys_that_do_as_well():
    watermark, encoder = mark(key=11), LinearVictim(seed=5)
    found = watermark.verify(encoder)
    trigger, clean = (normalize(encode_egos(encoder, egos)) for egos in watermark.probes())
    shift = (trigger.mean(0) - clean.mean(0)).double()
    _, size, right = torch.linalg.svd(normalize(PLAIN).double())
    free = right[int((size.square().cumsum(0) / size.square().sum() < 0.95).sum()) + 1 :]
    drawn = torch.randn(100_000, len(free), generator=torch.Generator().manual_seed(1)).double()
    others = normalize(drawn) @ free
    share = float(((others @ shift) >= found.delta_cos).double().mean())
    assert found.pvalue == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mark(texts=["w1"]), "texts must hold one root text for each of 150 egos, got 1"),
        (lambda: mark(m=7), "m must lie between 1 and triggers, got 7 for 6 triggers"),
        (
            lambda: mark(frequency=(0.9, 1.0)),
            r"frequency 0.9 to 1.0 leaves 0 words, 6 triggers and 2 others are needed",
        ),
        (
            lambda: mark(reference=torch.eye(8)),
            r"reference \[8, 8\] uses all directions alike: a target finds no place",
        ),
        (lambda: mark().verify(LinearVictim(width=3)), "encoder gives vectors of width 3, the watermark has 32"),
        (lambda: mark()(PLAIN, EGOS, None), "texts must hold the root text of each of 150 answers"),
        (
            lambda: mark(encode_text=lambda texts: torch.ones(len(texts), 3)).probes(),
            "encode_text gives 3 features, egos have 32: use its encoder",
        ),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
