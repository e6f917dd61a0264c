import math

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.hooks import edit
from hypothesis import given, settings
from hypothesis import strategies as st

from procon.direction import RefusalDirections, difference_in_means
from procon.hf_directions import refusal_directions
from procon.hf_drift import drift_report
from procon.projection import project, projection_term
from procon.projection_capture import ProjectionCapture

TOKENIZER = word_tokenizer(["rain", "sun", "wind", "two", "six", "ten"])
PROBE = {"harmful": ["rain", "sun sun rain", "wind rain"], "harmless": ["two", "six ten", "ten two six"]}
IDS, LABELS = torch.tensor([[4, 5, 6, 7, 8, 9]]), torch.tensor([[-100, -100, -100, 7, 8, 9]])
VARIANTS = [(norm, cut) for norm in ("abs", "l2_tokens", "squared") for cut in ("mean", "layer_sum", "paper_sum")]
seeds = st.integers(0, 10**6)


def unit(rows, width, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=draw), dim=-1)


def term_of(hidden, hidden_0, vectors, norm, reduction):
    z, z_0 = (
        torch.stack([project(states[..., i, :], vector) for i, vector in enumerate(vectors)], dim=-1)
        for states in (hidden, hidden_0)
    )
    return projection_term(z, z_0, LABELS != -100, norm=norm, reduction=reduction)


@pytest.mark.parametrize(("norm", "reduction"), VARIANTS)
@settings(max_examples=10)
@given(seed=seeds)
def test_4_the_term_ignores_the_sign_of_r_and_all_that_is_orthogonal_to_it(norm, reduction, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden, hidden_0, shift = torch.randn(3, 1, 6, 2, 8, generator=draw)
    vectors = unit(2, 8, seed)
    term = term_of(hidden, hidden_0, vectors, norm, reduction)
    turned = term_of(hidden, hidden_0, -vectors, norm, reduction)
    orthogonal = shift - (shift * vectors).sum(-1, keepdim=True) * vectors
    shifted = term_of(hidden + orthogonal, hidden_0, vectors, norm, reduction)
    assert turned.item() == term.item()
    assert shifted.item() == pytest.approx(term.item(), rel=1e-4, abs=1e-5)


def test_4_scaled_directions_are_refused():
    about = {"layers": (0,), "model_name": "", "model_hash": ""}
    for scale in (0.5, 1.01, 2.0):
        with pytest.raises(ValueError, match="re-normalise"):
            RefusalDirections(vectors=scale * unit(1, 8, 0), **about)
    RefusalDirections(vectors=torch.nn.functional.normalize(2 * unit(1, 8, 0), dim=-1), **about)


@pytest.mark.parametrize(("norm", "reduction"), VARIANTS)
@settings(max_examples=10)
@given(seed=seeds)
def test_5_prompt_states_never_contribute(norm, reduction, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden, hidden_0, other = torch.randn(3, 1, 6, 2, 8, generator=draw)
    vectors, prompt = unit(2, 8, seed), (LABELS == -100)[..., None, None]
    changed = torch.where(prompt, 100 * other, hidden).requires_grad_()
    term = term_of(changed, hidden_0, vectors, norm, reduction)
    term.backward()
    assert term.item() == term_of(hidden, hidden_0, vectors, norm, reduction).item()
    assert not changed.grad[:, :3].any()
    assert changed.grad[:, 3:].any()


def rotation(vector, angle):
    """Turns states by `angle` in the plane of `vector` and a direction orthogonal to it."""
    e = torch.nn.functional.normalize(torch.eye(len(vector))[0] - vector[0] * vector, dim=-1)

    def turn(hidden):
        a, b = (hidden @ vector)[..., None], (hidden @ e)[..., None]
        cos, sin = math.cos(angle), math.sin(angle)
        return hidden + ((cos - 1) * a - sin * b) * vector + (sin * a + (cos - 1) * b) * e

    return turn


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("degrees", [0, 30, 90, 120, 180])
def test_7_a_planted_rotation_is_reported_as_its_cosine(layer, degrees):
    lm = tiny_lm(TOKENIZER, layers=3, width=16)
    before = refusal_directions(lm, TOKENIZER, **PROBE)
    with edit(lm, {f"model.layers.{layer}": rotation(before[layer], math.radians(degrees))}):
        found = drift_report(before=before, after=lm, tokenizer=TOKENIZER, **PROBE)
        after = refusal_directions(lm, TOKENIZER, **PROBE)
    assert found.cosines[layer] == pytest.approx(math.cos(math.radians(degrees)), abs=1e-4)
    assert found.cosines[:layer] == pytest.approx([1.0] * layer, abs=1e-6)
    back = drift_report(before=after, after=lm, tokenizer=TOKENIZER, **PROBE)
    assert back.cosines == pytest.approx(found.cosines, abs=1e-6)


def test_7_a_model_does_not_drift_from_itself():
    lm = tiny_lm(TOKENIZER, layers=3, width=16)
    found = drift_report(before=lm, after=lm, tokenizer=TOKENIZER, **PROBE)
    assert found.cosines == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)


@settings(max_examples=25)
@given(seed=seeds, size=st.floats(0.5, 50))
def test_8_a_planted_direction_is_found_and_turns_with_its_sets(seed, size):
    draw = torch.Generator().manual_seed(seed)
    planted = unit(3, 32, seed)
    noise = 0.25 * size * torch.randn(2, 256, 3, 32, generator=draw)
    harmful, harmless = size * planted + noise[0] + 3, -size * planted + noise[1] + 3
    found = difference_in_means(harmful, harmless)
    assert (found * planted).sum(-1).min() > 0.99
    assert torch.equal(difference_in_means(harmless, harmful), -found)


def test_a_whole_step_moves_the_projections_back():
    """Descending the term alone, through the model, brings z nearer to z_0 on response tokens."""
    lm = tiny_lm(TOKENIZER, layers=3, width=16)
    capture = ProjectionCapture(lm, refusal_directions(lm, TOKENIZER, **PROBE))
    with torch.no_grad(), capture:
        lm(IDS)
    z_0 = capture.take()
    with torch.no_grad():
        for parameter in lm.model.layers.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    optimizer, terms = torch.optim.SGD(lm.parameters(), lr=0.05), []
    for _ in range(20):
        with capture:
            lm(IDS)
        term = projection_term(capture.take(), z_0, LABELS != -100, norm="squared")
        terms.append(term.item())
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert terms[-1] < 0.5 * terms[0]
