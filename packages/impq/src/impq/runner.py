"""The loss of many mixed-precision models at the cost of few forward passes: one model, cached block inputs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from impq.blocks import block_prefix
from impq.hidden_states import BlockList, Call
from impq.player import Player
from impq.walks import levels

UNSCORED = -100
CACHE_BYTES = 4 * 2**30

State = tuple[tuple[int, ...], ...]  # for each block, the levels of its players


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tokens of some windows and which of them are scored.

    Attributes:
        inputs: keyword arguments of the model's forward, without labels; `use_cache=False` where it has a cache.
        labels: [rows, tokens] token ids; token t is predicted from those before it (the shift happens inside, so
            column 0 is never scored); -100 is not scored.
    """

    inputs: Mapping[str, Any]
    labels: Tensor


class Weights(Protocol):
    """Dequantised weight of (module name, level), in the layout, type and place of the module's own parameter."""

    def __getitem__(self, key: tuple[str, int], /) -> Tensor: ...


def row_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the scored tokens of each row: -Σ_t log p(label_t | tokens before t).

    Args:
        logits: [rows, tokens, vocabulary], any floating type; the softmax is taken in 32 bits.
        labels: [rows, tokens]; see `Batch`.

    Returns:
        Sums in nats (64 bits) and numbers of scored tokens, both [rows] and on the CPU.

    >>> row_nll(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]]))
    (tensor([1.3863], dtype=torch.float64), tensor([1]))
    """
    wanted = labels[:, 1:]
    scored = wanted != UNSCORED
    losses = nn.functional.cross_entropy(logits[:, :-1][scored].float(), wanted[scored], reduction="none")
    scored = scored.cpu()  # a few numbers; not every accelerator has 64 bits
    placed = torch.zeros(scored.shape, dtype=torch.float64).masked_scatter(scored, losses.cpu().double())
    return placed.sum(1), scored.sum(1)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; every module's training flag is as before afterwards.

    >>> layer = nn.Dropout()
    >>> with evaluation(layer):
    ...     print(layer.training)
    False
    >>> layer.training
    True
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


@dataclass
class _Snapshot:
    """Inputs of blocks 0, s, 2s, … of one state of the model; None while they are being replaced."""

    state: State | None
    inputs: list[Tensor]


@dataclass
class _Pass:
    """What is kept of one batch: each block's other arguments, the state evaluated last and both ends of the game."""

    calls: list[Call]
    stride: int
    last: _Snapshot
    ends: dict[State, _Snapshot] = field(default_factory=dict)


class BlockRunner:
    """v(coalition): mean loss of the model whose players stand at the levels that the coalition says.

    v(q) = (1 / N) Σ -log p(token | tokens before it; W(q)) over the N scored tokens of all batches, in nats.

    Every evaluation starts from the first block that differs from the coalition evaluated before it, or from one of the
    two ends of the game if that is further down: in prefix order the blocks run form the trie of the coalitions, and
    a walk costs at most L (L + 1) / 2 blocks once v(0) is known. Batches are the outer loop. Block inputs of all
    batches are kept between calls if they fit; otherwise those of one batch and one coalition at a time, of every s-th
    block, with the smallest s that fits, at the price of up to s - 1 more blocks per evaluation and of all blocks for
    the first coalition of a call.

    Norm, head and whatever else surrounds the blocks run in the model's own forward, with the block list replaced for
    the moment; blocks run with the masks and position embeddings that the model gave each of them. The model is
    never changed: weights are passed to a block for one call.

    Args:
        model: any module whose forward returns logits (or has them as `.logits`, or first in a tuple).
        players: whose levels the coalitions speak of.
        weights: `weights[module, level]`, also at level 0: the model in full precision is no part of the game.
        batches: what the loss is measured on.
        widths: S, number of levels; bits p (S - 1) … of a coalition are the steps of player p.
        payoff: `prune` leaves the block of a demoted player out instead of taking its low width.
        cache_bytes: for block inputs.

    Attributes:
        n_scored: N.
        n_evaluations: coalitions evaluated.
        head_seconds: time spent outside the blocks (embedding, masks, norm, head, loss).

    Raises:
        ValueError: for no batches or nothing scored, labels of another shape or outside the vocabulary, players of
            another model, `prune` with players that are not blocks, a key-value cache, or a model whose blocks
            exchange more than one hidden state.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> from impq.hf_model import batches_of
    >>> model = tiny_lm(9, layers=2, width=8)
    >>> names = [f"model.layers.{i}.mlp.up_proj" for i in range(2)]
    >>> shape = tuple(model.get_submodule(names[0]).weight.shape)
    >>> players = [Player(name=n, block=i, modules=(n,), shapes=(shape,), nbytes=(2, 1)) for i, n in enumerate(names)]
    >>> weights = {(n, level): torch.full(shape, 0.1 * level) for n in names for level in (0, 1)}
    >>> runner = BlockRunner(model, players, weights, batches_of(model, torch.ones(1, 4).long()), widths=2)
    >>> losses = runner([0b00, 0b10, 0b11])
    >>> runner.n_evaluations, runner.n_block_forwards
    (3, 5.0)
    """

    def __init__(
        self,
        model: nn.Module,
        players: Sequence[Player],
        weights: Weights,
        batches: Sequence[Batch],
        *,
        widths: int,
        payoff: Literal["quantize", "prune"] = "quantize",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if not batches:
            raise ValueError("batches: at least one is needed to measure a loss")
        if not players:
            raise ValueError("players: at least one is needed")
        if widths < 2:
            raise ValueError(f"widths: at least two are needed to choose from, got {widths}")
        if payoff not in ("quantize", "prune"):
            raise ValueError(f"payoff must be 'quantize' or 'prune', got {payoff!r}")
        self.model, self.players, self.weights, self.batches = model, tuple(players), weights, tuple(batches)
        self.widths, self.payoff, self.cache_bytes = widths, payoff, cache_bytes
        name, _ = block_prefix(model, players[0].modules[0], players[0].block)
        self._blocks = BlockList(model, name)
        self._members: list[list[int]] = [[] for _ in self._blocks.entries]
        for p, player in enumerate(self.players):
            for module in player.modules:
                block_prefix(model, module, player.block)
            self._members[player.block].append(p)
        whole = all(len(members) < 2 for members in self._members)
        if payoff == "prune" and (widths != 2 or not whole):
            raise ValueError("payoff: 'prune' needs two widths and granularity 'block', one player in each block")
        self.n_evaluations = 0
        self.head_seconds = 0.0
        self._block_tokens = 0
        with evaluation(model):
            vocabulary, token_bytes = self._blocks.check(self.batches[0].inputs)
        self._n_tokens, self.n_scored = self._count(vocabulary)
        # the last state of every batch and both ends of the game
        kept = 3 * len(self._members) * self._n_tokens * token_bytes
        self._keep = kept <= cache_bytes
        self._passes: dict[int, _Pass] = {}
        self._ends = {self._state(0), self._state((1 << (len(self.players) * (widths - 1))) - 1)}

    @property
    def n_block_forwards(self) -> float:
        """Blocks run so far, each over all tokens: a block run on a share of the tokens counts as that share."""
        return self._block_tokens / self._n_tokens

    def __call__(self, coalitions: Sequence[int]) -> list[float]:
        """Losses of the coalitions in nats per scored token, evaluated in the given order; may be infinite or NaN.

        Raises:
            ValueError: for a coalition that is no state of the game.
        """
        states = [self._state(coalition) for coalition in coalitions]
        sums = [0.0] * len(states)
        with evaluation(self.model):
            for b, batch in enumerate(self.batches):
                opened = self._passes.get(b) or self._open(batch)
                if self._keep:
                    self._passes[b] = opened
                for i, state in enumerate(states):
                    hidden = self._run(opened, state)
                    started = time.perf_counter()
                    logits = self._blocks.head(batch.inputs, hidden)
                    sums[i] += float(row_nll(logits, batch.labels)[0].sum())
                    self.head_seconds += time.perf_counter() - started
        self.n_evaluations += len(states)
        return [total / self.n_scored for total in sums]

    def _count(self, vocabulary: int) -> tuple[int, int]:
        """Numbers of tokens and of scored tokens over all batches."""
        tokens = scored = 0
        for b, batch in enumerate(self.batches):
            if batch.labels.ndim != 2:
                raise ValueError(f"batches: labels must be [rows, tokens], got {list(batch.labels.shape)} in batch {b}")
            wanted = batch.labels[:, 1:][batch.labels[:, 1:] != UNSCORED]
            if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < vocabulary:
                raise ValueError(f"batches: labels of batch {b} must be -100 or below the vocabulary size {vocabulary}")
            tokens += batch.labels.numel()
            scored += len(wanted)
        if not scored:
            raise ValueError(
                "batches: no token is scored; windows need at least two tokens with labels other than -100"
            )
        return tokens, scored

    def _state(self, coalition: int) -> State:
        level = levels(coalition, len(self.players), self.widths).tolist()
        return tuple(tuple(level[p] for p in members) for members in self._members)

    def _open(self, batch: Batch) -> _Pass:
        started = time.perf_counter()
        hidden, calls = self._blocks.arguments(batch.inputs)
        self.head_seconds += time.perf_counter() - started
        if batch.labels.numel() != calls[0].tokens:
            shape = list(batch.labels.shape)
            raise ValueError(f"batches: labels are {shape}, the model's inputs have {calls[0].tokens} tokens")
        size, blocks = hidden.numel() * hidden.element_size(), len(calls)
        fitting = (s for s in range(1, blocks) if -(-blocks // s) * size <= self.cache_bytes)
        stride = 1 if self._keep else next(fitting, blocks)
        return _Pass(calls, stride, _Snapshot(None, [hidden] * -(-blocks // stride)))

    def _run(self, opened: _Pass, state: State) -> Tensor:
        """The last block's output in `state`; leaves the inputs of its blocks in `opened.last`."""
        stride = opened.stride
        known = [opened.last, *opened.ends.values()]
        start, snapshot = max(((_shared(s.state, state) // stride, s) for s in known), key=lambda pair: pair[0])
        last = opened.last
        last.state = None  # until the inputs below are complete
        if snapshot is not last:
            last.inputs = list(snapshot.inputs)
        hidden = last.inputs[start]
        for i in range(start * stride, len(state)):
            if i % stride == 0:
                last.inputs[i // stride] = hidden
            hidden = self._block(i, state[i], opened.calls[i], hidden)
        last.state = state
        if self._keep and state in self._ends:
            opened.ends[state] = _Snapshot(state, list(last.inputs))
        return hidden

    def _block(self, i: int, level: tuple[int, ...], call: Call, hidden: Tensor) -> Tensor:
        if self.payoff == "prune" and 1 in level:
            return hidden
        prefix = len(f"{self._blocks.name}.{i}.")
        weights = {
            f"{module[prefix:]}.weight": self.weights[module, at]
            for p, at in zip(self._members[i], level, strict=True)
            for module in self.players[p].modules
        }
        self._block_tokens += call.tokens
        return self._blocks.hidden_of(functional_call(self._blocks.entries[i], weights, *call.with_hidden(hidden)))


def _shared(known: State | None, state: State) -> int:
    """Index of the first block whose input is needed anew: the first that differs, or the last block if none does."""
    if known is None:
        return 0
    pairs = enumerate(zip(known, state, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(state) - 1)
