from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder, fvu, train_sparse_autoencoder  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_data(rows: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Two of 20 directions in 16 dimensions, around a mean far from 0."""
    directions = torch.nn.functional.normalize(random(20, 16, seed=99), dim=1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.ones(20).expand(rows, -1).multinomial(2, generator=generator)
    codes = torch.zeros(rows, 20).scatter(1, chosen, 0.5 + torch.rand(rows, 2, generator=generator))
    return scale * (codes @ directions + 3 * directions[0])


def filled(k: int | None) -> SparseAutoencoder:
    sae = SparseAutoencoder(5, 12, k=k)
    with torch.no_grad():
        sae.bias.copy_(random(5, seed=1))
        sae.encoder_bias.copy_(random(12, seed=2) / 3)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("k", [None, 1, 3, 12])
def test_codes_are_those_of_a_plain_loop(k: int | None) -> None:
    sae, x = filled(k), random(4, 5)
    z = sae.encode(x)
    for row, codes in zip(x, z, strict=True):
        before = [
            max(0.0, (w @ (row - sae.bias) + b).item()) for w, b in zip(sae.encoder, sae.encoder_bias, strict=True)
        ]
        kept = sorted(range(12), key=lambda m: -before[m])[: k or 12]
        assert codes.tolist() == pytest.approx([v if m in kept else 0.0 for m, v in enumerate(before)], abs=1e-6)
    torch.testing.assert_close(sae(x), torch.stack([sae.decoder @ codes + sae.bias for codes in z]))


@pytest.mark.parametrize("k", [None, 3])
def test_selected_codes_are_the_codes(k: int | None) -> None:
    sae, x, latents = filled(k), random(2, 4, 5), torch.tensor([7, 0, 11])
    torch.testing.assert_close(sae.selected(x, latents), sae.encode(x)[..., latents])


def test_half_precision_activations_are_coded_in_float32() -> None:
    assert filled(3).encode(random(2, 5).bfloat16()).dtype == torch.float32


def test_codes_scale_with_activations() -> None:
    sae, scaled = filled(3), filled(3)
    scaled.bias *= 7
    scaled.encoder_bias *= 7
    x = random(6, 5)
    torch.testing.assert_close(scaled.encode(7 * x), 7 * sae.encode(x))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_one_recipe_explains_activations_of_any_size(scale: float) -> None:
    sae = SparseAutoencoder(16, 64, k=4)
    told = train_sparse_autoencoder(sae, sparse_data(2000, scale), steps=250, batch_size=128)
    fresh = sparse_data(500, scale, seed=1)
    assert told < 0.05
    assert fvu(sae, fresh) < 0.06
    torch.testing.assert_close(sae.decoder.norm(dim=0), torch.ones(64))
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_training_depends_on_its_seed_alone() -> None:
    x = sparse_data(300)

    def trained(seed: int) -> Tensor:
        torch.rand(3)  # moves the global generator
        sae = SparseAutoencoder(16, 32, k=4, seed=1)
        train_sparse_autoencoder(sae, x, steps=12, batch_size=16, seed=seed)
        return sae.encoder

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_training_takes_half_precision_tokens_and_counts_steps() -> None:
    seen: list[tuple[int, int]] = []
    sae = SparseAutoencoder(16, 32, k=4)
    train_sparse_autoencoder(
        sae, sparse_data(50).bfloat16(), steps=3, batch_size=8, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sae.bias.dtype == torch.float32


def test_dead_latents_start_anew() -> None:
    sae, x = SparseAutoencoder(16, 32, k=4), sparse_data(500)
    with torch.no_grad():
        sae.encoder_bias[:16] = -1e3  # never active, and no gradient will ever reach them
    train_sparse_autoencoder(sae, x, steps=80, batch_size=64)
    assert (sae.encode(x)[:, :16] > 0).any(0).sum() >= 8


def test_fvu_is_zero_for_a_copy_and_one_for_the_mean() -> None:
    x = random(40, 5)
    eye, none = torch.eye(5), torch.zeros(5)
    both = torch.cat([eye, -eye])
    copy = SparseAutoencoder.from_weights(encoder=both, encoder_bias=torch.zeros(10), decoder=both.T, bias=none, k=None)
    assert fvu(copy, x) == pytest.approx(0, abs=1e-12)
    mean = SparseAutoencoder.from_weights(
        encoder=torch.zeros(1, 5), encoder_bias=torch.zeros(1), decoder=torch.zeros(5, 1), bias=x.mean(0), k=None
    )
    assert fvu(mean, x) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("k", [None, 3])
def test_saving_keeps_every_bit(tmp_path, k: int | None) -> None:  # type: ignore[no-untyped-def]
    sae, x = filled(k), random(3, 5)
    sae.save(tmp_path / "folder" / "sae.safetensors")
    loaded = SparseAutoencoder.load(tmp_path / "folder" / "sae.safetensors", width=5)
    assert loaded.k == k
    assert torch.equal(loaded(x), sae(x))
    with pytest.raises(ValueError, match=r"sae\.safetensors is for activations of width 5, the site has width 9"):
        SparseAutoencoder.load(tmp_path / "folder" / "sae.safetensors", width=9)


def test_other_files_are_refused_by_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"missing\.safetensors.*cannot be read"):
        SparseAutoencoder.load(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match=r"text\.safetensors.*cannot be read"):
        SparseAutoencoder.load(tmp_path / "text.safetensors")
    save_file({"bias": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors.*holds no sparse autoencoder"):
        SparseAutoencoder.load(tmp_path / "other.safetensors")


def weights(**changed: Tensor) -> dict[str, Tensor]:
    plain = {
        "encoder": torch.ones(3, 2),
        "encoder_bias": torch.ones(3),
        "decoder": torch.ones(2, 3),
        "bias": torch.ones(2),
    }
    return plain | changed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseAutoencoder(0, 4, k=1), "width and latents must be at least 1"),
        (lambda: SparseAutoencoder(4, 4, k=5), "k must be in 1..latents = 4"),
        (lambda: SparseAutoencoder.from_weights(**weights(encoder=torch.ones(3)), k=1), r"encoder must be \[m, d\]"),
        (lambda: SparseAutoencoder.from_weights(**weights(decoder=torch.ones(3, 2)), k=1), r"decoder must be \[2, 3\]"),
        (lambda: fvu(filled(1), torch.ones(3, 5)), "all the same"),
        (lambda: fvu(filled(1), torch.ones(3, 4)), r"activations must be \[n >= 2, 5\]"),
        (lambda: train_sparse_autoencoder(filled(1), random(4, 5), steps=0), "steps and batch_size must be at least 1"),
        (lambda: train_sparse_autoencoder(filled(1), torch.ones(4, 5), steps=1), "finite and not all the same"),
        (lambda: train_sparse_autoencoder(filled(1), random(4, 5), steps=1), "make a fresh one"),
        (lambda: train_sparse_autoencoder(filled(1), random(4, 5) / 0, steps=1), "finite and not all the same"),
    ],
)
def test_errors_name_what_is_wrong(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_massive_activations_neither_train_it_nor_get_codes():
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    sink = 1e4 * torch.ones(3, 8)
    plain, beside = (SparseAutoencoder(8, 32, k=4) for _ in range(2))
    train_sparse_autoencoder(plain, rows, steps=40)
    train_sparse_autoencoder(beside, torch.cat([rows, sink]), steps=40)
    assert fvu(beside, rows) == pytest.approx(fvu(plain, rows), rel=0.05)
    assert not beside.encode(sink).any()
    assert beside.encode(rows).any(1).all()
    assert not beside.selected(sink, torch.arange(3)).any()
    assert plain.reach == pytest.approx(10 * rows.norm(dim=1).median().item())
