"""Random models of every shape the runner must take apart, their players, and weights to swap in."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from impq.blocks import find_players, linear_shape
from impq.player import Player
from impq.runner import Batch

VOCABULARY = 29
WIDTH = 16
ARCHITECTURES = ("llama", "gemma2", "gpt2", "opt", "mistral", "tuples")


class TupleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, *, hidden_states: Tensor, scale: Tensor) -> tuple[Tensor, None]:
        mixed = self.norm(hidden_states).cumsum(1) * scale
        return hidden_states + self.down(torch.tanh(self.up(mixed))), None


class TupleLM(nn.Module):
    """A plain module whose blocks are called by keyword and return tuples; logits are the output itself."""

    def __init__(self, blocks: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.stack = nn.ModuleList([TupleBlock() for _ in range(blocks)])
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for i in range(len(self.stack)):
            hidden = self.stack[i](hidden_states=hidden, scale=torch.tensor(1.0 / (i + 1)))[0]
        return self.head(hidden)


def model_of(architecture: str, blocks: int = 3, seed: int = 0) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": blocks, "num_attention_heads": 4}
    rotary = {**sizes, "intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 64}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**rotary, tie_word_embeddings=True, initializer_range=0.3)).eval()
        if architecture == "mistral":
            return MistralForCausalLM(MistralConfig(**rotary, sliding_window=4, initializer_range=0.3)).eval()
        if architecture == "gemma2":
            config = Gemma2Config(**rotary, head_dim=4, sliding_window=4, initializer_range=0.3)
            config.final_logit_softcapping, config.attn_logit_softcapping = 2.0, 5.0
            return Gemma2ForCausalLM(config).eval()
        if architecture == "gpt2":
            config = GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=blocks, n_head=4, n_positions=64)
            config.initializer_range = 0.3
            return GPT2LMHeadModel(config).eval()
        if architecture == "opt":
            config = OPTConfig(**sizes, ffn_dim=24, max_position_embeddings=64, word_embed_proj_dim=8, init_std=0.3)
            return OPTForCausalLM(config).eval()
        return TupleLM(blocks).eval()


def batches(architecture: str = "llama", rows: tuple[int, ...] = (3, 2), tokens: int = 10) -> list[Batch]:
    """Random windows; transformers' models get padding on both sides, a different amount per row."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in rows:
        ids = torch.randint(2, VOCABULARY, (count, tokens), generator=generator)
        if architecture == "tuples":
            made.append(Batch(inputs={"ids": ids}, labels=ids))
            continue
        mask = torch.ones_like(ids)
        for row in range(count):
            mask[row, : row + 1 if row % 2 else 0] = 0
            mask[row, tokens - 2 * (row % 2 == 0) * (row + 1) // 2 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        made.append(Batch(inputs=inputs, labels=ids.masked_fill(mask == 0, -100)))
    return made


def players_of(model: nn.Module, granularity: str = "block", widths: int = 2) -> list[Player]:
    return [
        Player(
            name=found.name,
            block=found.block,
            modules=found.modules,
            shapes=tuple(linear_shape(model.get_submodule(name)) for name in found.modules),
            nbytes=tuple(range(widths, 0, -1)),
        )
        for found in find_players(model, granularity=granularity)
    ]


def noisy_weights(model: nn.Module, players: list[Player], widths: int = 2) -> dict[tuple[str, int], Tensor]:
    """Stand-in for quantised weights: the parameter plus noise that grows with the level."""
    generator = torch.Generator().manual_seed(2)
    return {
        (name, level): (weight + 0.1 * (level + 1) * torch.randn(weight.shape, generator=generator)).detach()
        for player in players
        for name in player.modules
        for weight in [model.get_submodule(name).weight]
        for level in range(widths)
    }


def mixed(model: nn.Module, players: list[Player], weights: dict, levels: list[int]) -> nn.Module:
    """A copy of the model that really holds the weights of these levels: the slow reference."""
    copied = copy.deepcopy(model)
    for player, level in zip(players, levels, strict=True):
        for name in player.modules:
            copied.get_submodule(name).weight = nn.Parameter(weights[name, level].clone())
    return copied.eval()


def plain_loss(model: nn.Module, parts: list[Batch]) -> float:
    """Mean loss by one ordinary forward per row, in the plainest way."""
    total, count = 0.0, 0
    with torch.no_grad():
        for part in parts:
            output = model(**part.inputs)
            logits = output if isinstance(output, Tensor) else output.logits
            probabilities = torch.log_softmax(logits.double(), -1)
            for row in range(len(part.labels)):
                for t in range(1, part.labels.shape[1]):
                    if (label := int(part.labels[row, t])) != -100:
                        total -= float(probabilities[row, t - 1, label])
                        count += 1
    return total / count
