import pytest
import torch
from tiny_models import model_of
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from impq.blocks import block_prefix, find_blocks, find_players, linear_shape, skipped


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.attn, self.up = nn.Linear(width, width), nn.Linear(width, 2 * width)


class Model(nn.Module):
    def __init__(self, *blocks, **others):
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        for name, module in others.items():
            self.add_module(name, module)


class TestFindBlocks:
    @pytest.mark.parametrize(
        ("architecture", "name"),
        [
            ("llama", "model.layers"),
            ("gemma2", "model.layers"),
            ("gpt2", "transformer.h"),
            ("opt", "model.decoder.layers"),
            ("tuples", "stack"),
        ],
    )
    def test_architectures(self, architecture, name):
        found, blocks = find_blocks(model_of(architecture, 3))
        assert found == name
        assert len(blocks) == 3

    def test_the_longer_list(self):
        short = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        assert find_blocks(Model(*[Block() for _ in range(3)], heads=short))[0] == "layers"
        assert find_blocks(Model(*[Block() for _ in range(3)], heads=short), "heads")[0] == "heads"

    def test_experts_inside_blocks_are_no_blocks(self):
        def mixture():
            block = Block()
            block.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(9)])
            return block

        model = Model(mixture(), mixture())
        assert find_blocks(model)[0] == "layers"
        assert find_players(model)[1].modules[-1] == "layers.1.experts.8"

    def test_lists_of_several_classes_must_be_named(self):
        model = Model(Block(), nn.Sequential(nn.Linear(4, 4)))
        with pytest.raises(ValueError, match=r"no nn.ModuleList of same-class modules with an nn.Linear inside"):
            find_blocks(model)
        assert [player.name for player in find_players(model, blocks="layers")] == ["layers.0", "layers.1"]

    def test_unknown_list_names_the_known(self):
        with pytest.raises(ValueError, match=r"no block list 'transformer.h'; its module lists are: model.layers"):
            find_blocks(model_of("llama"), "transformer.h")

    def test_no_linear_inside(self):
        with pytest.raises(ValueError, match="blocks: no nn"):
            find_players(Model(nn.ReLU(), nn.ReLU()))
        with pytest.raises(ValueError, match=r"blocks: layers.1 contains no nn.Linear"):
            find_players(Model(Block(), nn.ReLU()), blocks="layers")


class TestFindPlayers:
    def test_blocks(self):
        players = find_players(model_of("llama", 3))
        assert [player.name for player in players] == [f"model.layers.{i}" for i in range(3)]
        assert [player.block for player in players] == [0, 1, 2]
        assert [name.rpartition(".")[2] for name in players[0].modules] == [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ]

    @pytest.mark.parametrize(
        ("architecture", "attention", "mlp"), [("llama", 4, 3), ("gemma2", 4, 3), ("gpt2", 2, 2), ("opt", 4, 2)]
    )
    def test_groups_and_linears(self, architecture, attention, mlp):
        model = model_of(architecture, 2)
        players = find_players(model, granularity="group")
        assert [len(player.modules) for player in players] == [attention, mlp] * 2
        assert [player.name.rpartition(".")[2] for player in players] == ["attention", "mlp"] * 2
        linears = find_players(model, granularity="linear")
        assert [player.modules for player in linears] == [(player.name,) for player in linears]
        assert [player.block for player in linears] == [0] * (attention + mlp) + [1] * (attention + mlp)

    def test_every_linear_weight_of_the_blocks_is_in_exactly_one_player(self):
        model = model_of("gpt2", 3)
        owned = [f"{name}.weight" for player in find_players(model) for name in player.modules]
        matrices = [name for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
        assert sorted(owned) == sorted(matrices)

    def test_shapes_of_both_layouts(self):
        model = model_of("gpt2", 2)
        assert linear_shape(model.get_submodule("transformer.h.0.attn.c_attn")) == (48, 16)
        assert linear_shape(model.get_submodule("transformer.wte")) is None
        assert linear_shape(nn.Conv1d(2, 3, 1)) is None

    def test_routers_are_never_players(self):
        blocks = []
        for _ in range(2):
            block = Block()
            block.gate, block.router, block.shared_expert_gate = (nn.Linear(4, 2) for _ in range(3))
            block.gate_proj = nn.Linear(4, 4)
            blocks.append(block)
        model = Model(*blocks, lm_head=nn.Linear(4, 9), embed=nn.Embedding(9, 4), norm=nn.LayerNorm(4))
        model.layers[0].mixer = nn.Conv1d(4, 4, 3)
        assert find_players(model)[0].modules == ("layers.0.attn", "layers.0.up", "layers.0.gate_proj")
        routers = {f"layers.{i}.{n}.weight": "router" for i in (0, 1) for n in ("gate", "router", "shared_expert_gate")}
        assert skipped(model) == routers | {
            "layers.0.mixer.weight": "not a linear",
            "lm_head.weight": "outside the blocks",
            "embed.weight": "outside the blocks",
        }

    def test_tied_head_is_listed_once(self):
        assert skipped(model_of("llama")) == {"model.embed_tokens.weight": "outside the blocks"}


class TestErrors:
    @pytest.mark.parametrize("architecture", ["mixtral", "qwen3-moe"])
    def test_fused_experts(self, architecture):
        sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        if architecture == "mixtral":
            model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=2))
        else:
            config = Qwen3MoeConfig(**sizes, **heads, num_experts=2, moe_intermediate_size=8, head_dim=4)
            model = Qwen3MoeForCausalLM(config)
        with pytest.raises(
            ValueError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj \(2x16x8\) is a fused expert"
        ):
            find_players(model)

    def test_weights_shared_across_players(self):
        model = Model(Block(), Block())
        model.layers[1].up.weight = model.layers[0].up.weight
        with pytest.raises(ValueError, match=r"players layers.0 and layers.1 share the weight of layers.1.up"):
            find_players(model)

    def test_the_same_block_twice(self):
        block = Block()
        with pytest.raises(ValueError, match="share the weight"):
            find_players(Model(block, block))

    def test_weights_shared_within_a_player_count_once(self):
        model = Model(Block(), Block())
        model.layers[0].again = nn.Linear(4, 8)
        model.layers[0].again.weight = model.layers[0].up.weight
        assert find_players(model)[0].modules == ("layers.0.attn", "layers.0.up")
        with pytest.raises(ValueError, match="share the weight"):
            find_players(model, granularity="linear")

    def test_one_player(self):
        with pytest.raises(ValueError, match=r"at least two players, layers has 1 at 'block'"):
            find_players(Model(Block()))
        assert len(find_players(Model(Block()), granularity="linear")) == 2

    def test_granularity(self):
        with pytest.raises(ValueError, match="granularity must be"):
            find_players(Model(Block(), Block()), granularity="layer")


class TestBlockPrefix:
    def test_outermost_list(self):
        block = Block()
        block.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        model = Model(Block(), block)
        assert block_prefix(model, "layers.1.experts.1", 1) == ("layers", "layers.1")

    def test_wrong_block_or_module(self):
        model = Model(Block(), Block())
        for module, block in (("layers.0.up", 1), ("layers.0.down", 0), ("up", 0)):
            with pytest.raises(ValueError, match="players: the model has no linear"):
                block_prefix(model, module, block)

    def test_does_not_need_the_weights(self):
        with torch.device("meta"):
            assert block_prefix(Model(Block(), Block()), "layers.0.up", 0)[0] == "layers"
