"""A sparse autoencoder of activations: TopK or plain ReLU codes, unit-norm decoder columns, one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

REVIVALS = 4  # rounds in which dead latents start anew, spread over the first half of the steps
REVIVED = 0.3  # length of their encoder rows, as a share of the others': large ones would throw training back
MASSIVE = 10.0  # times the median norm: a few tokens of large models carry nearly all of the variance
CHUNK = 8192  # rows encoded at once where there is no training


class SparseAutoencoder(nn.Module):
    """Codes z of activations x, and x from its codes.

    z = TopK_k(ReLU(W_enc (x - b) + b_e)),  x̂ = W_dec z + b;  with `k=None` all positive codes stay (plain ReLU).

    ReLU and TopK commute with a positive factor, so codes are in the units of x: with unit-norm decoder columns, z_m is
    the length of what latent m adds. Codes are computed in the autoencoder's own dtype. A token whose norm is beyond
    `reach` has no codes: the attention sinks of large models are a hundred times longer than other tokens.

    Args:
        width: d, of the activations.
        latents: m, number of codes.
        k: how many codes a token keeps at most, or None.
        seed: of the initial weights: random unit-norm decoder columns, the encoder their transpose, biases 0.

    Attributes:
        encoder: W_enc [m, d].
        encoder_bias: b_e [m].
        decoder: W_dec [d, m].
        bias: b [d].
        reach: length of the longest activation that has codes; infinite before training.

    Raises:
        ValueError: for sizes below 1 or a `k` outside 1..latents.

    Source: Gao et al., arXiv 2406.04093 (TopK); Bricken et al. 2023 (unit-norm columns, resampling of dead latents);
    Sun et al., arXiv 2402.17762 (massive activations).

    >>> sae = SparseAutoencoder(4, 16, k=2)
    >>> (sae.encode(torch.ones(3, 4)) > 0).sum(-1).max().item() <= 2
    True
    """

    def __init__(self, width: int, latents: int, *, k: int | None, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or latents < 1:
            raise ValueError(f"width and latents must be at least 1, got {width} and {latents}")
        if k is not None and not 1 <= k <= latents:
            raise ValueError(f"k must be in 1..latents = {latents}, or None for plain ReLU, got {k}")
        self.width, self.latents, self.k = width, latents, k
        decoder = torch.randn(width, latents, generator=torch_rng(seed, "sparse_autoencoder"))
        self.decoder = nn.Parameter(decoder / decoder.norm(dim=0))
        self.encoder = nn.Parameter(self.decoder.detach().T.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.bias = nn.Parameter(torch.zeros(width))
        self.reach: Tensor
        self.register_buffer("reach", torch.tensor(torch.inf))

    def encode(self, x: Tensor) -> Tensor:
        """Codes [..., m] of activations [..., d]."""
        codes = self._codes(x, self.encoder, self.encoder_bias)
        if self.k is None:
            return codes
        kept = codes.topk(self.k, dim=-1)
        return torch.zeros_like(codes).scatter(-1, kept.indices, kept.values)

    def decode(self, z: Tensor) -> Tensor:
        """Activations [..., d] of codes [..., m]."""
        return z @ self.decoder.T + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x̂ [..., d]."""
        return self.decode(self.encode(x))

    def selected(self, x: Tensor, latents: Tensor) -> Tensor:
        """Codes [..., s] of some latents [s] only: plain ReLU needs their encoder rows, TopK all rows to compete."""
        if self.k is not None:
            codes = self._codes(x, self.encoder, self.encoder_bias)
            least = codes.topk(self.k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
            chosen = codes[..., latents]
            return chosen.masked_fill(chosen < least, 0.0)
        return self._codes(x, self.encoder[latents], self.encoder_bias[latents])

    def _codes(self, x: Tensor, encoder: Tensor, encoder_bias: Tensor) -> Tensor:
        x = x.to(self.bias.dtype)
        codes = torch.relu((x - self.bias) @ encoder.T + encoder_bias)
        return codes.masked_fill((x.norm(dim=-1) > self.reach).unsqueeze(-1), 0.0)

    def save(self, file: str | Path) -> None:
        """Writes weights and `k` to one safetensors file."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(Path(file), save(weights, metadata={"sparse_autoencoder": json.dumps({"k": self.k})}))

    @classmethod
    def load(cls, file: str | Path, *, width: int | None = None) -> SparseAutoencoder:
        """An autoencoder that `save` wrote, frozen, on the CPU.

        Args:
            file: to read.
            width: d that the activations have, checked if given.

        Raises:
            ValueError: naming the file, when it is missing, of another format, or of another width.
        """
        try:
            with safe_open(str(file), framework="pt") as stored:
                meta = json.loads((stored.metadata() or {}).get("sparse_autoencoder", "null"))
                weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"file {str(file)!r} cannot be read as safetensors: {error}") from None
        names = {"encoder", "encoder_bias", "decoder", "bias", "reach"}
        if not isinstance(meta, dict) or set(weights) != names:
            raise ValueError(f"file {str(file)!r} holds no sparse autoencoder written by save")
        return cls.from_weights(**weights, k=meta["k"], width=width, origin=str(file))

    @classmethod
    def from_weights(
        cls,
        *,
        encoder: Tensor,
        encoder_bias: Tensor,
        decoder: Tensor,
        bias: Tensor,
        k: int | None,
        reach: Tensor | None = None,
        width: int | None = None,
        origin: str = "weights",
    ) -> SparseAutoencoder:
        """A frozen autoencoder of given weights (shapes as in the attributes), for readers of other formats.

        Args:
            encoder, encoder_bias, decoder, bias: copied; their dtype is kept.
            k: see the class.
            reach: see the class; infinite if not given.
            width: d that the activations have, checked if given.
            origin: what errors name.

        Raises:
            ValueError: for shapes that do not fit each other, or another width.
        """
        if encoder.ndim != 2:
            raise ValueError(f"{origin}: the encoder must be [m, d], got {list(encoder.shape)}")
        latents, found = encoder.shape
        shapes = {"encoder_bias": (latents,), "decoder": (found, latents), "bias": (found,)}
        for name, tensor in (("encoder_bias", encoder_bias), ("decoder", decoder), ("bias", bias)):
            if tensor.shape != shapes[name]:
                raise ValueError(f"{origin}: {name} must be {list(shapes[name])}, got {list(tensor.shape)}")
        if width is not None and found != width:
            raise ValueError(f"{origin} is for activations of width {found}, the site has width {width}")
        sae = cls(found, latents, k=k).to(bias.dtype)
        weights = {"encoder": encoder, "encoder_bias": encoder_bias, "decoder": decoder, "bias": bias}
        sae.load_state_dict({**weights, "reach": sae.reach if reach is None else reach})
        return sae.requires_grad_(False)


@torch.no_grad()
def fvu(sae: SparseAutoencoder, activations: Tensor) -> float:
    """Fraction of variance unexplained: Σ|x - x̂|² / Σ|x - mean(x)|², 0 for a perfect copy.

    Args:
        sae: with the width of the activations.
        activations: [n, d], at least two different rows.

    Raises:
        ValueError: for another shape, or rows that are all the same.
    """
    rows = _rows(sae, activations)
    mean = rows.mean(0, dtype=torch.float64)
    variance = _squares(rows, mean)
    if variance == 0:
        raise ValueError("activations are all the same: there is no variance to explain")
    left = 0.0
    for chunk in torch.split(rows, CHUNK):
        x = chunk.to(sae.bias)
        left += (x - sae(x)).double().square().sum().item()
    return left / variance


def train_sparse_autoencoder(
    sae: SparseAutoencoder,
    activations: Tensor,
    *,
    steps: int,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train in place on squared error: Adam, learning rate falling linearly to 0, unit-norm decoder columns throughout.

    The gradient of each decoder column is made orthogonal to it, and the column is brought back to norm 1 after every
    step. Activations are centred and brought to mean square 1 while training, and the scale is folded into the weights
    afterwards, so that one recipe serves activations of any size; the weights are frozen then. A latent that is
    silent for an eighth of the steps within the first half starts anew in the direction of a badly reconstructed token;
    nothing else is done about dead latents. Tokens of more than ten times the median norm are left out, and `reach` is
    set there.

    Args:
        sae: freshly made, on any device.
        activations: [n, d] tokens, on any device and of any floating dtype; drawn with replacement.
        steps: optimizer steps.
        batch_size: tokens a step.
        learning_rate: the first one.
        seed: of the draws.
        progress: called as `progress(steps done, steps)`.

    Returns:
        The fraction of variance unexplained on (at most 8192 of) the activations.

    Raises:
        ValueError: for other shapes, counts below 1, activations that are all the same or not finite, or an autoencoder
            whose weights are frozen.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    rows = _rows(sae, activations)
    norms = rows.norm(dim=1, dtype=torch.float32)
    reach = MASSIVE * norms.median()
    if not norms.isfinite().all():
        raise ValueError("activations must be finite and not all the same")
    rows = rows if norms.max() <= reach else rows[norms <= reach]
    device, dtype = sae.bias.device, sae.bias.dtype
    mean = rows.mean(0, dtype=torch.float64)
    scale = (_squares(rows, mean) / rows.numel()) ** 0.5
    if not 0 < scale < float("inf"):
        raise ValueError("activations must be finite and not all the same")
    if not sae.bias.requires_grad:
        raise ValueError("sae is trained or loaded already, and its weights are frozen: make a fresh one")
    mean, rng = mean.to(device, dtype), torch_rng(seed, "train_sparse_autoencoder")
    optimizer = torch.optim.Adam(sae.parameters(), lr=learning_rate)
    pace = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
    every = max(steps // (2 * REVIVALS), 1)
    fired = torch.zeros(sae.latents, dtype=torch.bool, device=device)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(rows), (batch_size,), generator=rng).to(rows.device)
        x = (rows[chosen].to(device, dtype) - mean) / scale
        z = sae.encode(x)
        residual = x - sae.decode(z)
        optimizer.zero_grad()
        torch.autograd.backward(residual.square().mean())
        with torch.no_grad():
            gradient = sae.decoder.grad
            assert gradient is not None
            gradient -= (gradient * sae.decoder).sum(0) * sae.decoder
        optimizer.step()
        pace.step()
        with torch.no_grad():
            sae.decoder.div_(sae.decoder.norm(dim=0))
            fired |= (z > 0).any(0)
            if step % every == 0 and step <= every * REVIVALS and step < steps:
                _revive(sae, optimizer, ~fired, residual, rng)
                fired.zero_()
        if progress is not None:
            progress(step, steps)
    with torch.no_grad():
        sae.bias.mul_(scale).add_(mean)
        sae.encoder_bias.mul_(scale)
        if reach > 0:
            sae.reach.copy_(reach)
    sae.requires_grad_(False)
    sample = torch.randint(len(rows), (CHUNK,), generator=rng).to(rows.device) if len(rows) > CHUNK else slice(None)
    return fvu(sae, rows[sample])


def _revive(
    sae: SparseAutoencoder, optimizer: torch.optim.Adam, dead: Tensor, residual: Tensor, rng: torch.Generator
) -> None:
    """Points dead latents at badly reconstructed tokens, and lets Adam know no more of them than of an average one."""
    latents = dead.nonzero().squeeze(1)
    error = residual.detach().double().square().sum(1)
    if not len(latents) or not error.sum() > 0:
        return
    drawn = torch.multinomial((error / error.sum()).cpu(), len(latents), replacement=True, generator=rng)
    directions = nn.functional.normalize(residual.detach()[drawn.to(residual.device)], dim=1)
    sae.decoder[:, latents] = directions.T
    sae.encoder[latents] = directions * (REVIVED * sae.encoder[~dead].norm(dim=1).mean().nan_to_num(1.0))
    sae.encoder_bias[latents] = 0.0
    for name, index in (("decoder", (slice(None), latents)), ("encoder", latents), ("encoder_bias", latents)):
        state = optimizer.state[getattr(sae, name)]
        state["exp_avg"][index] = 0.0
        state["exp_avg_sq"][index] = state["exp_avg_sq"].mean()  # 0 would make the next steps far too large


def _squares(rows: Tensor, mean: Tensor) -> float:
    return sum((chunk - mean).square().sum().item() for chunk in torch.split(rows, CHUNK))


def _rows(sae: SparseAutoencoder, activations: Tensor) -> Tensor:
    if activations.ndim != 2 or activations.shape[1] != sae.width or len(activations) < 2:
        raise ValueError(f"activations must be [n >= 2, {sae.width}], got {list(activations.shape)}")
    return activations.detach()
