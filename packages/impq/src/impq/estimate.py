"""From a model and a text to its game: players found, weights quantised once, walks played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from aisec_common.study import content_hash
from aisec_common.torch.model_hash import model_hash
from torch import Tensor, nn

from impq.backend import Backend, GroupSize, get_backend
from impq.blocks import Granularity, find_players, linear_shape
from impq.game import Game
from impq.gptq_backend import collect_hessians
from impq.header import GameHeader
from impq.hf_model import batches_of
from impq.play import Progress, Schedule, play
from impq.player import Player
from impq.runner import CACHE_BYTES, Batch, BlockRunner, evaluation
from impq.scores import SCORES
from impq.spqe import Floats
from impq.walks import Direction
from impq.weights import QuantizedWeights

Calibration = Tensor | Mapping[str, Tensor] | Sequence[Batch]


@dataclass(frozen=True, kw_only=True)
class ModelGame:
    """A model's game before a walk is played: who plays, what a coalition loses, and the quantised weights.

    Attributes:
        model: in full precision; never changed.
        header: what is played; walks are full and independent until `estimate_game` says otherwise.
        value: losses of coalitions on `batches`.
        weights: of every linear at every width.
        batches: the tokens.
    """

    model: nn.Module
    header: GameHeader
    value: BlockRunner
    weights: QuantizedWeights
    batches: Sequence[Batch]

    def on(self, batches: Sequence[Batch]) -> ModelGame:
        """The same quantised model on other tokens."""
        runner = self.value
        value = BlockRunner(
            self.model,
            runner.players,
            self.weights,
            batches,
            widths=runner.widths,
            payoff=runner.payoff,
            cache_bytes=runner.cache_bytes,
        )
        header = replace(self.header, calib_hash=tokens_hash(batches), n_tokens=value.n_scored)
        return replace(self, header=header, value=value, batches=batches)

    def score(self, name: str) -> Floats:
        """A baseline's score of every player (L,): the higher, the more demotion is taken to hurt.

        Raises:
            ValueError: if `name` is none of `SCORES`, or the score does not fit the players.
        """
        if name not in SCORES:
            raise ValueError(f"name must be one of {', '.join(SCORES)}, got {name!r}")
        return SCORES[name](self.model, self.header.players, self.batches, self.weights)


def model_game(
    model: nn.Module,
    calibration: Calibration,
    *,
    bits: Sequence[int] = (4, 2),
    backend: str | Backend = "rtn",
    group_size: GroupSize = 64,
    granularity: Granularity = "block",
    payoff: Literal["quantize", "prune"] = "quantize",
    blocks: str | None = None,
    weights: Literal["packed", "resident"] = "packed",
    cache_bytes: int = CACHE_BYTES,
    name: str | None = None,
    progress: Progress | None = None,
) -> ModelGame:
    """Finds the players of a causal language model and quantises each of their linears once at every width.

    Hessians, where the backend needs them, come from the full-precision model, so that a block's weights depend on
    nothing but its width and v is a function of the coalition.

    Args:
        model: any causal language model with a block list.
        calibration: token ids [rows, tokens]; a mapping with `input_ids` and, if wanted, `attention_mask` and `labels`
            (-100: not scored); or batches.
        bits: widths, the widest first.
        backend: a name of `impq.backend.BACKENDS`, or your own.
        group_size: weights that share a scale along the input, or `row`, or `tensor`.
        granularity: what a player is; see `impq.blocks.find_players`.
        payoff: `prune` leaves a demoted block out instead.
        blocks: name of the block list, where the longest is not meant.
        weights: `packed` unpacks a block's codes as it runs, `resident` keeps every width unpacked.
        cache_bytes: memory for hidden states between blocks.
        name: of the model in the artefacts; that of its configuration by default.
        progress: called as `progress(linears quantised, all)`.

    Raises:
        TypeError: if `calibration` is none of these, or token ids for a model that is not of transformers.
        ValueError: see `find_players`, `batches_of`, `QuantizedWeights` and `BlockRunner`.
    """
    backend = get_backend(backend)
    batches = _batches(model, calibration)
    found = find_players(model, granularity=granularity, blocks=blocks)
    names = [module for player in found for module in player.modules]
    hessians = None
    if backend.needs_hessian:

        def read() -> None:
            with evaluation(model):
                for batch in batches:
                    model(**batch.inputs)

        hessians = collect_hessians(model, names, read)
    quantised = QuantizedWeights(
        model, [p.modules for p in found], backend, bits, group_size, hessians=hessians, keep=weights, progress=progress
    )
    players = tuple(
        Player(
            name=player.name,
            block=player.block,
            modules=player.modules,
            shapes=tuple(_shape(model, module) for module in player.modules),
            nbytes=tuple(np.sum([quantised.nbytes(module) for module in player.modules], axis=0).tolist()),
        )
        for player in found
    )
    value = BlockRunner(
        model, players, quantised, batches, widths=len(quantised.bits), payoff=payoff, cache_bytes=cache_bytes
    )
    header = GameHeader(
        model_name=name or str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__),
        model_hash=model_hash(model),
        calib_hash=tokens_hash(batches),
        backend=backend.name,
        bits=quantised.bits,
        group_size=group_size,
        granularity=granularity,
        payoff=payoff,
        players=players,
        other_bytes=_bytes_outside(model, names),
        n_tokens=value.n_scored,
    )
    return ModelGame(model=model, header=header, value=value, weights=quantised, batches=batches)


def estimate_game(
    model: nn.Module,
    calibration: Calibration,
    *,
    n_permutations: int = 100,
    antithetic: bool = False,
    depth: int | None = None,
    direction: Direction = "demote",
    seed: int = 0,
    journal: Path | str | None = None,
    share: tuple[int, int] = (0, 1),
    schedule: Schedule | None = None,
    stop_when: Callable[[Game], bool] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Game:
    """Shapley values, with intervals, of what each block loses by a lower width (SPQE).

    phi_i = mean over M walks of v(after block i is demoted) - v(before), v the mean next-token loss of the quantised
    model in nats per token on the calibration text.

    Args:
        model, calibration, settings: see `model_game`.
        n_permutations: number of walks M.
        antithetic: walks come in pairs, each the other reversed; a pair is exact for a pairwise game.
        depth: steps after which every walk ends (`Budget.depth`); None plays full walks, as the paper does.
        direction: `promote` starts from all low.
        seed: of the walks.
        journal, share, schedule, stop_when, progress: see `impq.play.play`.

    Raises:
        ValueError: see `model_game` and `impq.play.play`.

    Source: arXiv 2509.15455, section 3.

    >>> import torch
    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> ids = torch.arange(40).view(2, 20)
    >>> game = estimate_game(tiny_lm(50, width=32), ids, n_permutations=4, group_size=16)
    >>> game.shapley.shape, game.n_evaluations
    ((2,), 4)
    """
    found = model_game(model, calibration, **settings)
    header = replace(found.header, antithetic=antithetic, depth=depth, direction=direction, seed=seed)
    return play(
        found.value,
        header,
        n_permutations,
        journal=journal,
        share=share,
        schedule=schedule,
        stop_when=stop_when,
        progress=progress,
    )


def tokens_hash(batches: Sequence[Batch]) -> str:
    """sha256 of what the loss is measured on."""
    tensors = [
        tensor
        for batch in batches
        for tensor in (*(batch.inputs[name] for name in sorted(batch.inputs)), batch.labels)
        if isinstance(tensor, Tensor)
    ]
    return content_hash("".join(content_hash(tensor.cpu().numpy()) for tensor in tensors))


def _batches(model: nn.Module, calibration: Calibration) -> Sequence[Batch]:
    if isinstance(calibration, Tensor | Mapping):
        if not hasattr(model, "get_input_embeddings"):
            raise TypeError("calibration: token ids need a model of transformers; give batches for any other")
        return batches_of(cast(Any, model), calibration)
    if not isinstance(calibration, Sequence) or not all(isinstance(batch, Batch) for batch in calibration):
        raise TypeError("calibration must be token ids [rows, tokens], a mapping with input_ids, or batches")
    return calibration


def _shape(model: nn.Module, module: str) -> tuple[int, int]:
    shape = linear_shape(model.get_submodule(module))
    assert shape is not None  # find_players names linears only
    return shape


def _bytes_outside(model: nn.Module, quantised: Sequence[str]) -> int:
    """Bytes of the parameters that no player owns; shared ones count once."""
    inside = {id(model.get_submodule(name).weight) for name in quantised}
    outside = {id(p): p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside}
    return sum(outside.values())
