import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from refusal_index.prompts import FORCED_PROMPT, PROMPTS
from refusal_index.reference import sampled_reference

N, SAMPLES = 40, 50
QUESTIONS = [f"What is number {i}?" for i in range(N)]


class Sampler:
    """Refuses question i with probability i / N and is wrong with probability (i / N)²."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.asked = 0

    def __call__(self, texts):
        self.asked += len(texts)
        replies = []
        for text in texts:
            p = int(text.rsplit("number ", 1)[1].split("?")[0]) / N
            if FORCED_PROMPT.instruction in text:
                replies.append(f"<answer>{'wrong' if self.rng.random() < p**2 else 'right'}</answer>")
            else:
                replies.append("<answer>UNANSWERED</answer>" if self.rng.random() < p else "<answer>right</answer>")
        return replies


def test_frequencies_correlation_and_auroc():
    sampler = Sampler()
    found = sampled_reference(sampler, QUESTIONS, ["right"] * N, samples=SAMPLES)
    assert sampler.asked == 2 * N * SAMPLES
    p = np.arange(N) / N
    assert np.abs(found.refusal - p).max() < 0.25
    assert np.abs(found.error - p**2).max() < 0.25
    assert found.spearman == pytest.approx(spearmanr(found.refusal, found.error).statistic)
    assert found.spearman > 0.9
    assert found.auroc == pytest.approx(roc_auc_score(found.error < 0.5, 1 - found.refusal))


def test_a_model_that_never_refuses_has_no_correlation():
    found = sampled_reference(lambda texts: ["<answer>a</answer>"] * len(texts), ["q", "r"], ["a", "b"], samples=2)
    assert np.isnan(found.spearman)
    assert found.auroc == 0.5
    right = sampled_reference(lambda texts: ["<answer>a</answer>"] * len(texts), ["q", "r"], ["a", "a"], samples=2)
    assert np.isnan(right.auroc)


def test_names_what_is_wrong():
    with pytest.raises(ValueError, match="samples must be at least 1"):
        sampled_reference(Sampler(), QUESTIONS, ["right"] * N, samples=0, prompt=PROMPTS["refuse-6"])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sampled_reference(Sampler(), QUESTIONS, ["right"] * N, samples=2, batch_size=0)
    with pytest.raises(ValueError, match="generate: must return a list with one text for each of 16, got 1 values"):
        sampled_reference(lambda texts: ["x"], QUESTIONS, ["right"] * N, samples=2)
    with pytest.raises(ValueError, match=r"grader: .* got 1 labels"):
        sampled_reference(Sampler(), QUESTIONS, ["right"] * N, samples=2, grader=lambda q, g, a: ["CORRECT"])
    with pytest.raises(ValueError, match="one length"):
        sampled_reference(Sampler(), QUESTIONS, ["right"])
