"""Sensitivity scores that cost one forward or backward pass or none: the baselines a measured game is compared with.

All return one number per player, higher where demotion is expected to hurt more, and read the full-precision model.
The papers leave details open; each docstring says how the score is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from impq.blocks import block_prefix
from impq.hidden_states import BlockList, logits_of
from impq.player import Player
from impq.runner import UNSCORED, Batch, Weights, evaluation, row_nll
from impq.spqe import Floats

Score = Callable[[nn.Module, Sequence[Player], Sequence[Batch], Weights], Floats]


def llm_mq(model: nn.Module, players: Sequence[Player], batches: Sequence[Batch], weights: Weights) -> Floats:
    """First-order loss change of LLM-MQ, of the low width over the high one; one backward pass.

    s_i = Σ_W |⟨∂L/∂W, W − Q_low(W)⟩| − Σ_W |⟨∂L/∂W, W − Q_high(W)⟩| over the player's linears W, L the mean loss.

    Args:
        model: full precision; its parameters, their `requires_grad` and `.grad` stay as they are.
        players: of the game.
        batches: calibration.
        weights: `weights[module, level]`, level 0 high and 1 low.

    Returns:
        Scores (players,) in nats; as we read Li et al. (2023), who allot bits by the first-order term per layer.
    """
    names = [name for player in players for name in player.modules]
    parameters = {name: model.get_submodule(name).get_parameter("weight").detach() for name in names}
    gradients = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in parameters.items()}
    scored = sum(int((batch.labels[:, 1:] != UNSCORED).sum()) for batch in batches)
    if not scored:
        raise ValueError("batches: no token is scored; windows need at least two tokens with labels other than -100")
    with evaluation(model), torch.enable_grad():
        for batch in batches:
            leaves = {f"{name}.weight": weight.detach().requires_grad_() for name, weight in parameters.items()}
            logits = logits_of(functional_call(model, leaves, (), dict(batch.inputs)))
            loss = row_nll(logits, batch.labels)[0].sum() / scored
            # an expert that no token reached has no gradient
            parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for name, part in zip(names, parts, strict=True):
                gradients[name] += 0.0 if part is None else part.float()

    def term(name: str, level: int) -> float:
        error = parameters[name].float() - weights[name, level].float()
        return abs(float((gradients[name] * error).cpu().double().sum()))

    return np.array([sum(term(name, 1) - term(name, 0) for name in player.modules) for player in players])


def lim(model: nn.Module, players: Sequence[Player], batches: Sequence[Batch], weights: Weights) -> Floats:
    """Layer input modification: s_i = − mean over tokens of cos(block input, block output); one forward pass.

    Args:
        model: full precision.
        players: whole blocks.
        batches: calibration; tokens with `attention_mask` 0 are left out.
        weights: not used.

    Returns:
        Scores (players,) in [-1, 1]; as we read Dumitru et al. (2024): a block that changes its input more matters
        more.

    Raises:
        ValueError: for players that are not whole blocks.
    """
    totals, tokens = np.zeros(len(players)), 0
    for mask, states in _hidden_states(model, players, batches):
        for p, player in enumerate(players):
            cosine = torch.cosine_similarity(states[player.block].float(), states[player.block + 1].float(), dim=-1)
            totals[p] -= float(cosine[mask].cpu().double().sum())
        tokens += int(mask.sum())
    return totals / tokens


def activation(model: nn.Module, players: Sequence[Player], batches: Sequence[Batch], weights: Weights) -> Floats:
    """Activation norm: s_i = ‖output of block i‖_F over all tokens; one forward pass.

    In pre-norm models the residual stream grows with depth, so that this says little more than "first blocks low".

    Args:
        model: full precision.
        players: whole blocks.
        batches: calibration; tokens with `attention_mask` 0 are left out.
        weights: not used.

    Returns:
        Scores (players,); as we read it, of the block's output and not of its input.

    Raises:
        ValueError: for players that are not whole blocks.
    """
    squares = np.zeros(len(players))
    for mask, states in _hidden_states(model, players, batches):
        for p, player in enumerate(players):
            squares[p] += float(states[player.block + 1][mask].float().square().sum(-1).cpu().double().sum())
    return np.sqrt(squares)


def zd(
    model: nn.Module,
    players: Sequence[Player],
    batches: Sequence[Batch],
    weights: Weights,
    *,
    sign: Literal[1, -1] = 1,
) -> Floats:
    """Z-score distribution: s_i = sign · share of the player's weights with (w − mean) / sd > 1; needs no data.

    Args:
        model: full precision.
        players: of the game; mean and standard deviation are over all weights of one player.
        batches: not used.
        weights: not used.
        sign: whether many large weights make a player matter more (1) or less (-1).

    Returns:
        Scores (players,) in [0, 1] or [-1, 0]; as we read Dumitru et al. (2024), the direction being uncertain.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[9.0, 0.0], [0.0, 0.0]]))
    >>> zd(model, [Player(name="0", block=0, modules=("0",), shapes=((2, 2),), nbytes=(2, 1))], [], {})
    array([0.25])
    """
    return np.array([sign * _share_above(model, player) for player in players])


def weight_error(model: nn.Module, players: Sequence[Player], batches: Sequence[Batch], weights: Weights) -> Floats:
    """Squared distance of the two widths: s_i = Σ_W ‖Q_low(W) − Q_high(W)‖²_F over the player's linears; no data.

    Args:
        model: not used.
        players: of the game.
        batches: not used.
        weights: `weights[module, level]`, level 0 high and 1 low.

    >>> player = Player(name="0", block=0, modules=("0",), shapes=((2, 2),), nbytes=(2, 1))
    >>> weight_error(nn.Identity(), [player], [], {("0", 0): torch.ones(2, 2), ("0", 1): torch.zeros(2, 2)})
    array([4.])
    """

    def distance(name: str) -> float:
        return float((weights[name, 1].float() - weights[name, 0].float()).cpu().double().square().sum())

    return np.array([sum(map(distance, player.modules)) for player in players])


SCORES: Mapping[str, Score] = {
    "llm_mq": llm_mq,
    "lim": lim,
    "zd+": zd,
    "zd-": partial(zd, sign=-1),
    "activation": activation,
    "weight_error": weight_error,
}


def _hidden_states(
    model: nn.Module, players: Sequence[Player], batches: Sequence[Batch]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """For each batch, which tokens count [rows, tokens], and the input of block 0 and the output of every block."""
    if len({player.block for player in players}) < len(players):
        raise ValueError("players: this score belongs to whole blocks; use granularity 'block'")
    if not batches:
        raise ValueError("batches: this score needs at least one")
    blocks = BlockList(model, block_prefix(model, players[0].modules[0], players[0].block)[0])
    with evaluation(model):
        blocks.check(batches[0].inputs)
        for batch in batches:
            hidden, calls = blocks.arguments(batch.inputs)
            states = [hidden]
            for block, call in zip(blocks.entries, calls, strict=True):
                args, kwargs = call.with_hidden(states[-1])
                states.append(blocks.hidden_of(block(*args, **kwargs)))
            mask = batch.inputs.get("attention_mask", torch.ones_like(batch.labels))
            yield mask.bool(), states


def _share_above(model: nn.Module, player: Player) -> float:
    """Share of the player's weights that lie more than one standard deviation above their mean."""
    parts = [model.get_submodule(name).get_parameter("weight").detach().cpu().double() for name in player.modules]
    count = sum(part.numel() for part in parts)
    mean = sum(float(part.sum()) for part in parts) / count
    deviation = (sum(float((part - mean).square().sum()) for part in parts) / count) ** 0.5
    return sum(int((part - mean > deviation).sum()) for part in parts) / count
