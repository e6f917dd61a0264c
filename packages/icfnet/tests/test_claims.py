"""The acceptance rows of the method, each against a slow or independent reference."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cohort import small_cohort, small_inputs, small_network
from torch.nn.functional import binary_cross_entropy_with_logits

from icfnet import balanced_nll, transport_plan
from icfnet.batches import Inputs
from icfnet.bins import TimeBins
from icfnet.decomposition import ResidualDecomposition, orthogonality_loss
from icfnet.hf_text import FrozenTextTower
from icfnet.likelihood import nll, risk
from icfnet.network import icfnet_loss
from icfnet.transport import co_attend, transport_cost

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # compiling POT's docstrings: invalid escape sequence
    import ot

CPU = torch.device("cpu")
SEEDS = st.integers(0, 10**6)


def outcomes(seed, n=4, patients=40):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(patients, n, generator=rng, dtype=torch.float64)
    return logits, torch.randint(n, (patients,), generator=rng), torch.rand(patients, generator=rng) < 0.6


def test_1_losses_at_even_hazards():
    label, logits = torch.arange(4), torch.zeros(4, 4)
    for event in (torch.ones(4).bool(), torch.zeros(4).bool()):
        torch.testing.assert_close(nll(logits, label, event), (label + 1) * math.log(2))
        expected = torch.full((4,), 4 * math.log(2))
        if event[0]:
            expected[0] = math.log(2)
        torch.testing.assert_close(balanced_nll(logits, label, event), expected)


@given(SEEDS, st.integers(2, 7))
@settings(max_examples=20)
def test_2_the_standard_loss_is_the_logistic_hazard_likelihood(seed, n):
    logits, label, event = outcomes(seed, n)
    torch.testing.assert_close(
        balanced_nll(logits, label, event, beta=0.0), nll(logits, label, event), atol=1e-7, rtol=0
    )
    # the formula of pycox's nll_logistic_hazard, written anew (pycox itself is no dependency): cross entropy of every
    # bin up to Y, its target 1 in bin Y with an event
    target = torch.zeros_like(logits).scatter_(1, label[:, None], event.double()[:, None])
    each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(nll(logits, label, event), each.cumsum(1).gather(1, label[:, None])[:, 0])


@pytest.mark.parametrize("balanced", [False, True])
def test_3_covariate_free_fits_are_life_tables(balanced):
    n = 4
    _, label, event = outcomes(3, n, patients=300)
    free = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (balanced_nll if balanced else nll)(free.expand(300, n), label, event).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    d = [int((event & (label == k)).sum()) for k in range(n)] + [0]
    c = [int((~event & (label == k)).sum()) for k in range(n)]
    left = [int((event & (label > k)).sum() + (~event & (label >= k)).sum()) for k in range(n)]
    extra = [max(n - k - 2, 0) * d[k + 1] + (n - k - 1) * c[k] for k in range(n)]
    expected = [d[k] / (d[k] + left[k] + balanced * extra[k]) for k in range(n)]
    assert free.sigmoid().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("dtype", "stop", "apart"), [(torch.float64, 1e-12, 1e-9), (torch.float32, 1e-6, 1e-5)])
def test_4_plans_are_pots(dtype, stop, apart):
    lengths, rng = (10, 100, 4096), torch.Generator().manual_seed(0)
    x = torch.randn(3, 4096, 32, generator=rng, dtype=torch.float64)
    y = torch.randn(3, 6, 32, generator=rng, dtype=torch.float64)
    mask = torch.arange(4096) < torch.tensor(lengths)[:, None]
    cost = transport_cost(x, y, mask)
    plan = transport_plan(cost.to(dtype), mask, tolerance=stop)
    logs = transport_plan(cost.to(dtype), mask, tolerance=stop, log_domain=True)
    for i, n in enumerate(lengths):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = ot.unbalanced.sinkhorn_knopp_unbalanced(
                np.full(n, 1 / n), np.full(6, 1 / 6), cost[i, :n].numpy(), 0.05, 0.5, reg_type="entropy", stopThr=1e-12
            )
        torch.testing.assert_close(plan[i, :n].double(), torch.from_numpy(exact), rtol=apart, atol=0)
        torch.testing.assert_close(logs[i, :n].double(), torch.from_numpy(exact), rtol=apart, atol=0)


@given(SEEDS)
@settings(max_examples=10)
def test_4_plans_follow_the_patches(seed):
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(1, 30, 8, generator=rng).double(), torch.randn(1, 4, 8, generator=rng).double()
    plan = transport_plan(transport_cost(x, y), tolerance=1e-12)
    order = torch.randperm(30, generator=rng)
    permuted = transport_plan(transport_cost(x[:, order], y), tolerance=1e-12)
    torch.testing.assert_close(permuted, plan[:, order], rtol=1e-9, atol=0)
    padded = torch.cat([x, torch.randn(1, 11, 8, generator=rng).double()], dim=1)
    mask = (torch.arange(41) < 30)[None]
    longer = transport_plan(transport_cost(padded, y, mask), mask, tolerance=1e-12)
    torch.testing.assert_close(longer[:, :30], plan, rtol=1e-9, atol=0)


def test_5_strong_marginals_are_met():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 8, generator=rng).double(), torch.randn(2, 6, 8, generator=rng).double()
    plan = transport_plan(transport_cost(x, y), reg=0.1, tau=1e6, tolerance=1e-9)
    assert (plan.sum(2) * 50 - 1).abs().max() < 1e-4
    assert (plan.sum(1) * 6 - 1).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [{}, {"ot": False}, {"fusion": "late"}, {"token_mixing": "isolated"}])
def test_6_padding_and_patch_order_change_nothing(changes):
    cohort = small_cohort(8)
    network = small_network(**changes)
    inputs, scales = small_inputs(cohort)
    rng = torch.Generator().manual_seed(0)
    shuffled = tuple(bag[torch.randperm(len(bag), generator=rng)] for bag in cohort.bags)
    other, _ = small_inputs(small_cohort(8, bags=shuffled), scales=scales)
    with torch.no_grad():
        together = network(inputs.batch(torch.arange(8), CPU)).logits
        single = torch.cat([network(inputs.batch(torch.tensor([i]), CPU)).logits for i in range(8)])
        reordered = network(other.batch(torch.arange(8), CPU)).logits
    torch.testing.assert_close(together, single, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, reordered, rtol=0, atol=1e-5)


def test_7_decomposition():
    rod = ResidualDecomposition(8, dropout=0.25).eval()
    patches, mask, zero = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 8)
    _, o = rod(patches, mask, [zero, zero])
    torch.testing.assert_close(o, rod.pooled(patches.mean(1)))
    e = torch.eye(3)
    torch.testing.assert_close(orthogonality_loss(e, [e.roll(1, 0), e.roll(2, 0)]), torch.zeros(3))
    torch.testing.assert_close(orthogonality_loss(e, [3 * e, -0.5 * e]), torch.full((3,), 2.0))


def test_8_gradients_reach_what_learns():
    cohort = small_cohort(8)
    tower = FrozenTextTower.tiny([text for pair in cohort.text for text in pair])
    embeddings = tower.encode([text for pair in cohort.text for text in pair]).view(8, 2, -1)
    _, scales = small_inputs(cohort)
    scales = replace(scales, sizes=replace(scales.sizes, text=tower.width))
    network = small_network(scales.sizes).train()
    inputs = Inputs(cohort, scales, network.config.modalities, embeddings)
    output = network(inputs.batch(torch.arange(8), CPU))
    icfnet_loss(output, torch.arange(8) % 4, torch.arange(8) % 2 == 0, network.config).backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in tower.model.parameters())
    text = network.sentences
    for weight in (text.share, text.adapter[0].weight, text.project[0].weight, network.patches[0].weight):
        assert weight.grad.abs().sum() > 0
    x, y = torch.randn(1, 5, 4, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    assert not transport_plan(transport_cost(x, y)).requires_grad
    seen = torch.ones(1, 5, dtype=torch.bool)
    attended = co_attend(x, y, seen, seen[:, :2], reg=0.05, tau=0.5)
    (to_x,) = torch.autograd.grad(attended.sum(), x, retain_graph=True)
    plan = transport_plan(transport_cost(x, y))
    torch.testing.assert_close(to_x, plan.sum(2)[:, :, None].expand(1, 5, 4))  # through P^T X alone
    (to_y,) = torch.autograd.grad(attended.sum(), y, allow_unused=True)
    assert to_y is None


def test_9_bins_come_from_the_patients_to_train_on():
    from icfnet.sksurv_estimator import ICFNetSurvival

    ids = small_cohort(40).ids
    cohort = small_cohort(40, folds={0: (ids[:30], ids[30:])})
    later = cohort.with_outcome(np.where(np.arange(40) < 30, cohort.time, cohort.time + 500), cohort.event)
    edges = []
    for one in (cohort, later):
        train, test = one.split(0)
        model = ICFNetSurvival(modalities=("genes",), width=8, heads=2, layers=1, epochs=1).fit(train)
        edges.append(model.bins_.edges)
        labels = model.bins_.label(np.concatenate([train.time, test.time]))
        assert set(labels) <= set(range(4))
    assert edges[0] == edges[1]
    assert (labels[30:] == 3).all()
    whole = TimeBins.fit(later.time, later.event)
    assert whole.edges != edges[0]  # quantiles of everybody would have told


@given(SEEDS)
@settings(max_examples=20)
def test_10_risk_falls_with_every_survival(seed):
    logits, *_ = outcomes(seed)
    survival = (1 - logits.sigmoid()).cumprod(1)
    torch.testing.assert_close(risk(logits), -survival.sum(1))
    for k in range(4):
        raised = survival.clone()
        raised[:, k] += 0.01
        assert (-raised.sum(1) < risk(logits)).all()


@pytest.mark.parametrize("lacking", ["genes", "text", "wsi"])
def test_12_a_missing_modality_is_a_masked_token(lacking):
    cohort = small_cohort(8)
    network = small_network()
    inputs, scales = small_inputs(cohort)
    with torch.no_grad():
        fused = {}
        for name, part in (("whole", cohort), ("lacking", cohort.without(lacking))):
            seen = []
            handle = network.fusion.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given))
            given, _ = small_inputs(part, scales=scales)
            fused[name] = network(given.batch(torch.arange(8), CPU)).logits
            handle.remove()
            ((vectors, present),) = seen
            if name == "whole":
                gone = {"genes": [0, 1], "text": [3, 4], "wsi": [1, 2, 3]}[lacking]
                whole_vectors, mask = vectors, present.clone()
                mask[:, gone] = False
        assert torch.equal(present, mask)
        kept = [t for t in range(5) if mask[0, t] and t != 2]  # the path vector itself loses one co-attended bag
        torch.testing.assert_close(vectors[:, kept], whole_vectors[:, kept])
        masked = whole_vectors.clone()
        if lacking != "wsi":
            bags = network._bags(inputs.batch(torch.arange(8), CPU))
            left = [whole_vectors[:, t] for t in (1, 3) if mask[0, t]]
            masked[:, 2] = network.decomposition(*bags["wsi"], left)[0]
        expected = network.head(network.fusion(masked.masked_fill(~mask[:, :, None], 0.0), mask)[0])
    torch.testing.assert_close(fused["lacking"], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(fused["lacking"], fused["whole"])
