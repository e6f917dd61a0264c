import pytest
import torch
from small_graphs import made_graph
from torch.nn import functional

from gfmextract.config import ExtractionConfig
from gfmextract.pyg_ego import ego_graphs
from gfmextract.surrogate import Surrogate, fit_surrogate, fresh_surrogate

EGOS = ego_graphs(made_graph(30, 0.2, 0), torch.arange(30))
QUICK = {"backbone": "mlp", "hidden": 16, "epochs": 5, "min_steps": 1}


def fresh(**settings):
    return fresh_surrogate(ExtractionConfig(**{**QUICK, **settings}), EGOS, 3)


def square(vectors, rows):
    return functional.mse_loss(vectors, EGOS.x[EGOS.start[:-1]][rows, :3])


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = fresh(), fresh(), fresh(seed=1)
    assert torch.equal(torch.rand(3), expected)
    batch = EGOS.batch()
    assert torch.equal(one.encode_graph(batch), same.encode_graph(batch))
    assert not torch.equal(one.encode_graph(batch), other.encode_graph(batch))


def test_training_lowers_the_loss_and_can_be_repeated():
    first, again = (fit_surrogate(fresh(min_steps=100), EGOS, square) for _ in range(2))
    rows = torch.arange(30)
    with torch.no_grad():
        assert square(first.encode_graph(EGOS.batch()), rows) < 0.2 * square(fresh().encode_graph(EGOS.batch()), rows)
        assert torch.equal(first.encode_graph(EGOS.batch()), again.encode_graph(EGOS.batch()))


def test_every_epoch_goes_once_over_all_rows_in_equal_parts():
    seen = []

    def loss(vectors, rows):
        if vectors.requires_grad:
            seen.append(rows)
        return square(vectors, rows)

    shown = []
    fit_surrogate(fresh(epochs=2, batch_size=29), EGOS, loss, show=lambda *told: shown.append(told))
    assert [len(part) for part in seen[:4]] == [15] * 4, "30 in parts of 29 would leave a part of one"
    assert sorted(torch.cat(seen[:2]).tolist()) == sorted(torch.cat(seen[2:4]).tolist()) == list(range(30))
    assert shown == [("training mlp", 1, 2), ("training mlp", 2, 2)]


def test_patience_holds_a_tenth_out_stops_and_returns_the_best():
    trained, reached = set(), []

    def loss(vectors, rows):
        if vectors.requires_grad:
            trained.update(rows.tolist())
            return square(vectors, rows)
        reached.append(square(vectors, rows).item())
        return square(vectors, rows)

    noisy = fresh(epochs=300, patience=3, learning_rate=0.2)
    fit_surrogate(noisy, EGOS, loss)
    assert len(trained) == 27
    best = min(range(len(reached)), key=lambda i: reached[i])
    assert len(reached) == best + 1 + 3 < 300
    held_out = torch.tensor(sorted(set(range(30)) - trained))
    with torch.no_grad():
        assert square(noisy.encode_graph(EGOS[held_out].batch()), held_out).item() == pytest.approx(reached[best])


def test_costs_add_up():
    surrogate = fit_surrogate(fresh(epochs=2), EGOS, square)
    once = surrogate.cost
    assert once.seconds > 0
    fit_surrogate(surrogate, EGOS, square)
    assert surrogate.cost.flops == 2 * once.flops > 0
    assert fit_surrogate(fresh(epochs=4), EGOS, square).cost.flops == 2 * once.flops
    assert all(weight.grad is None or not weight.grad.any() for weight in surrogate.parameters())


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    surrogate = fit_surrogate(fresh(backbone="gps"), EGOS, square)
    surrogate.save(tmp_path / "copy.safetensors")
    loaded = Surrogate.load(tmp_path / "copy.safetensors")
    assert loaded.config == surrogate.config
    assert loaded.cost == surrogate.cost
    with torch.no_grad():
        assert torch.equal(loaded.encode_graph(EGOS.batch()), surrogate.encode_graph(EGOS.batch()))


def test_it_always_answers_in_evaluation_mode():
    surrogate = fresh(backbone="gps").train()
    with torch.no_grad():
        alone = surrogate.encode_graph(EGOS[:1].batch())
        assert torch.allclose(alone, surrogate.train().encode_graph(EGOS.batch())[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_surrogate(fresh(), EGOS[:1], square), "egos must be at least 2"),
        (
            lambda: fit_surrogate(fresh(), EGOS, lambda v, r: v.sum() * float("nan")),
            "learning_rate 0.004 made the loss",
        ),
        (lambda: Surrogate.load("nosuch.safetensors"), "nosuch.safetensors is not a file that Surrogate.save wrote"),
        (
            lambda: fresh().encode_graph(ego_graphs(made_graph(5, 0.5, 0), torch.arange(5), positions=4).batch()),
            r"width \(4, 4\), the encoder was trained on \(4, 8\)",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
