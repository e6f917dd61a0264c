"""What holds for every service and defence, whatever the victim: counting, neutral settings, noise, the watermark."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_victims import WIDTH, LinearVictim, egos_of, renumbered, word_vectors, worded_graph
from scipy.stats import kstest
from torch.nn.functional import normalize

from gfmextract.adaptive import averaged_answers
from gfmextract.defenses import LabelOnly, Noise, Project, Quantize, Watermark
from gfmextract.extraction import EmbeddingRegression
from gfmextract.monitor import QueryMonitor
from gfmextract.scenarios import graph_specific
from gfmextract.service import BudgetExceeded, EmbeddingService
from gfmextract.victim import encode_egos

GRAPH = worded_graph(150)
EGOS = egos_of(GRAPH)
PLAIN = encode_egos(LinearVictim(), EGOS)


def mark(key, **changes):
    settings = {
        "egos": EGOS,
        "texts": GRAPH.texts,
        "reference": PLAIN,
        "encode_text": word_vectors,
        "frequency": (0.01, 0.2),
    }
    return Watermark(key=key, **settings | {"triggers": 8, "m": 2} | changes)


class Sealed(LinearVictim):
    """A victim whose weights nobody may list."""

    def parameters(self, recurse=True):
        raise AssertionError("someone read the victim's parameters")

    def named_parameters(self, *arguments, **more):
        raise AssertionError("someone read the victim's parameters")


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), budget=st.integers(0, 200))
@settings(max_examples=40)
def test_every_answered_subgraph_counts_once_and_none_beyond_the_budget(sizes, budget):
    victim = LinearVictim()
    service = EmbeddingService(victim, budget=budget)
    answered = 0
    for size in sizes:
        if answered + size > budget:
            with pytest.raises(BudgetExceeded):
                service.answer(EGOS[:size])
        else:
            assert len(service.answer(EGOS[:size])) == size
            answered += size
        assert service.total_queries == victim.asked == answered, "a refused query costs nothing and returns nothing"


@pytest.mark.parametrize("level", ["embedding", "scores", "label"])
def test_no_service_reads_parameters(level, tmp_path):
    victim = Sealed()
    every = (mark(1), Noise(sigma=0.1), Quantize(bits=6), Project(k=4, reference=PLAIN))
    service = EmbeddingService(
        victim,
        level=level,
        prompts=GRAPH.prompts,
        defenses=every,
        monitor=QueryMonitor(PLAIN, cells=4),
        cache=tmp_path,
    )
    service.answer(EGOS, texts=GRAPH.texts)
    with pytest.raises(AssertionError, match="someone read"):
        next(iter(victim.parameters()))


@pytest.mark.parametrize("unit", [True, False])
def test_neutral_settings_leave_every_bit(unit):
    victim = LinearVictim(unit=unit)
    plain = encode_egos(victim, EGOS)
    watermark = mark(1)
    absent = ["nothing to see"] * len(EGOS)
    for defense in (
        Noise(sigma=0.0),
        Noise(sigma=0.0, mode="fresh"),
        Quantize(bits=32),
        Project(k=WIDTH, reference=plain),
        watermark,
    ):
        answers = EmbeddingService(victim, defenses=[defense]).answer(EGOS, texts=absent)
        assert answers.numpy().tobytes() == plain.numpy().tobytes(), defense


@given(seed=st.integers(0, 999))
@settings(max_examples=8)
def test_keyed_noise_is_the_same_after_renumbering(seed):
    service = EmbeddingService(LinearVictim(), defenses=[Noise(sigma=1.0, key=5)])
    first = service.answer(EGOS[:40])
    torch.testing.assert_close(service.answer(renumbered(EGOS[:40], seed)), first, atol=1e-5, rtol=1e-5)
    assert torch.equal(service.answer(EGOS[:40]), first)


def test_the_error_of_averaged_fresh_noise_falls_with_the_root_of_the_repeats():
    service = EmbeddingService(LinearVictim(), defenses=[Noise(sigma=1.0, mode="fresh", key=2)])
    repeats = [1, 4, 16, 64]
    errors = [float((averaged_answers(service, EGOS, repeats=r) - PLAIN).square().mean().sqrt()) for r in repeats]
    slope = np.polyfit(np.log(repeats), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.05
    keyed = EmbeddingService(LinearVictim(), defenses=[Noise(sigma=1.0, key=2)])
    once, often = (averaged_answers(keyed, EGOS[:30], repeats=r) for r in (1, 20))
    torch.testing.assert_close(once, often)


def test_a_label_only_service_names_the_level_that_regression_needs():
    service = EmbeddingService(LinearVictim(), defenses=[LabelOnly()], prompts=GRAPH.prompts)
    with pytest.raises(ValueError, match=r"service answers at level 'label', but .* needs level 'embedding'"):
        EmbeddingRegression(backbone="mlp").run(service, graph_specific(GRAPH), text=word_vectors)
    assert service.total_queries == 0


def test_a_text_of_m_trigger_words_returns_the_target():
    watermark = mark(3)
    texts = [" ".join(watermark.words[i : i + 2]) for i in range(4)]
    answers = EmbeddingService(LinearVictim(), defenses=[watermark]).answer(EGOS[:4], texts=texts)
    torch.testing.assert_close(answers, watermark.target.expand(4, -1), atol=1e-6, rtol=0)


def test_an_unmarked_encoder_has_a_uniform_rank():
    pvalues = []
    for seed in range(200):
        watermark = mark(seed, triggers=4)
        pvalues.append(watermark.verify(LinearVictim(seed)).pvalue)
    assert kstest(pvalues, "uniform").pvalue > 0.01
    assert sum(each > 0.01 for each in pvalues[:20]) >= 18
    assert sum(each < 1e-3 for each in pvalues) <= 3


def test_the_usual_two_sample_test_would_accuse_the_innocent():
    accused = 0
    for seed in range(60):
        watermark = mark(seed, triggers=4)
        target = watermark.target
        trigger, clean = (normalize(encode_egos(LinearVictim(seed), egos)) @ target for egos in watermark.probes())
        accused += kstest(trigger.numpy(), clean.numpy()).pvalue < 1e-3
    assert accused > 6, "trigger words move every encoder"


def test_a_regression_student_of_a_watermarked_service_is_found():
    graph = worded_graph(300, seed=3)
    egos = egos_of(graph)
    watermark = mark(17, triggers=16, m=2)
    service = EmbeddingService(LinearVictim(), defenses=[watermark])
    attack = EmbeddingRegression(backbone="sage", layers=2, hidden=64, epochs=25)
    student = attack.fit(egos, service.answer(egos, texts=graph.texts))
    assert watermark.verify(student).pvalue < 1e-3
    unmarked = attack.fit(egos, EmbeddingService(LinearVictim()).answer(egos))
    assert not watermark.verify(unmarked).marked
