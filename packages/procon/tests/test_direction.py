import math

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.model_hash import model_hash
from safetensors.torch import load_file, save_file

from procon.direction import RefusalDirections, difference_in_means

STATES = torch.randn(2, 6, 3, 8, generator=torch.Generator().manual_seed(0))


def directions(layers=(0, 1, 2), width=8, **changes):
    unit = torch.nn.functional.normalize(STATES[0, : len(layers), 0, :width], dim=-1)
    return RefusalDirections(**{"vectors": unit, "layers": layers, "model_name": "tiny", "model_hash": "0"} | changes)


def test_direction_is_the_normalised_difference_of_means():
    found = difference_in_means(STATES[0], STATES[1, :4])
    for layer in range(3):
        mean = sum(STATES[0, :, layer]) / 6 - sum(STATES[1, :4, layer]) / 4
        torch.testing.assert_close(found[layer], mean / math.sqrt(float(mean @ mean)))
    assert difference_in_means(STATES[0].bfloat16(), STATES[1].bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("harmful", "harmless", "message"),
    [
        (STATES[0, :0], STATES[1], "harmful is empty"),
        (STATES[0], STATES[1, :0], "harmless is empty"),
        (STATES[0], STATES[1, 0], "harmless must be"),
        (STATES[0], STATES[1, ..., :4], "share"),
        (STATES[0], torch.full_like(STATES[1], math.nan), "harmless has NaN or infinite states in layer 0"),
        (STATES[0], STATES[0].flip(0), "same mean in layer 0"),
        (STATES[0], torch.cat([STATES[1][:, :2], STATES[0][:, 2:]], 1), "same mean in layer 2"),
    ],
)
def test_states_that_give_no_direction(harmful, harmless, message):
    with pytest.raises(ValueError, match=message) as caught:
        difference_in_means(harmful, harmless)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": directions().vectors * 1.01}, "re-normalise"),
        ({"vectors": directions().vectors * math.nan}, "re-normalise"),
        ({"vectors": directions().vectors.half()}, "float32"),
        ({"vectors": directions().vectors[:2]}, "3 layers"),
        ({"layers": ()}, "0 layers"),
        ({"layers": (0, 1, 1)}, "distinct"),
        ({"layers": (0, 1, -1)}, "distinct"),
        ({"layers": (0, 1, 3), "blocks": 3}, "from 0 to 2"),
    ],
)
def test_fields_must_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        directions(**changes)


def test_they_are_a_mapping_from_layer_to_vector():
    some = directions((0, 2, 5))
    assert (len(some), list(some), some.blocks, some.width) == (3, [0, 2, 5], 6, 8)
    assert torch.equal(some[5], some.vectors[2])
    assert 2 in some
    assert 1 not in some
    assert dict.fromkeys(some) == dict.fromkeys((0, 2, 5))
    with pytest.raises(KeyError, match="layer 1"):
        some[1]


def test_layers_are_chosen_from_either_end():
    every = directions()
    assert every.at("all") is every
    last = every.at((-1, 0))
    assert last.layers == (2, 0)
    assert torch.equal(last.vectors, every.vectors[[2, 0]])
    assert every.at((0, 1)).blocks == 3
    assert every.at((0, 2)).at((-1,)).layers == (2,)
    for layers, message in (((3,), "3 has no direction"), ((-4,), "-4 has"), ((0, 0), "distinct"), ("last", "'all'")):
        with pytest.raises(ValueError, match=message):
            every.at(layers)
    with pytest.raises(ValueError, match="0 layers"):
        every.at(())
    with pytest.raises(ValueError, match="-1 has no direction"):
        every.at((0, 1)).at((-1,))


def test_random_directions_are_unit_vectors_that_depend_on_seed_and_layer():
    every = directions()
    drawn = every.random(0)
    torch.testing.assert_close(drawn.vectors.norm(dim=-1), torch.ones(3))
    assert torch.equal(drawn.vectors, every.random(0).vectors)
    assert not torch.equal(drawn.vectors, every.random(1).vectors)
    assert torch.equal(drawn.at((2,)).vectors, every.at((2,)).random(0).vectors)
    assert (drawn.layers, drawn.model_hash, drawn.blocks) == (every.layers, every.model_hash, every.blocks)
    wide = torch.nn.functional.normalize(torch.ones(1, 4096), dim=-1)
    assert abs(float(directions((0,), vectors=wide).random(0)[0] @ wide[0])) < 0.1  # 1/√4096 is one sd


def test_check_accepts_the_model_and_refuses_others():
    lm = tiny_lm(9, layers=3, width=8, heads=2)
    mine = directions(model_hash=model_hash(lm))
    mine.check(lm)
    mine.at((1,)).check(lm)
    mine.random(0).check(lm)
    for other, message in (
        (tiny_lm(9, layers=3, width=16), "d = 8, the model has 16"),
        (tiny_lm(9, layers=2, width=8, heads=2), "3 blocks, the model has 2"),
        (tiny_lm(9, layers=4, width=8, heads=2), "3 blocks, the model has 4"),
        (tiny_lm(9, layers=3, width=8, heads=2, seed=1), "other weights"),
        (tiny_lm(9, layers=3, width=8, heads=2).bfloat16(), "other weights"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            mine.check(other)
        assert "tiny" in str(caught.value)


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "r.safetensors"
    some = directions((0, 2, 5), blocks=9)
    some.save(path)
    back = RefusalDirections.load(path)
    assert torch.equal(back.vectors, some.vectors)
    fields = ("layers", "model_name", "model_hash", "blocks")
    assert [getattr(back, field) for field in fields] == [getattr(some, field) for field in fields]
    assert list(load_file(path)) == ["directions"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_files_that_hold_no_directions(tmp_path):
    path = tmp_path / "r.safetensors"
    with pytest.raises(ValueError, match=r"r\.safetensors: cannot be read"):
        RefusalDirections.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        RefusalDirections.load(tmp_path)
    about = {"schema": "procon-directions/1", "layers": "[0]", "model_name": "", "model_hash": "", "blocks": "1"}
    unit = torch.eye(1, 4)
    for tensors, metadata, message in (
        ({"directions": unit}, None, "schema"),
        ({"directions": unit}, {**about, "schema": "procon-directions/2"}, "schema"),
        ({"directions": unit}, {key: about[key] for key in about if key != "layers"}, "layers"),
        ({"directions": unit}, {**about, "layers": "[0"}, "no refusal directions"),
        ({"directions": unit}, {**about, "layers": "0"}, "no refusal directions"),
        ({"other": unit}, about, "directions"),
        ({"directions": unit.half()}, about, "float32"),
        ({"directions": unit * 2}, about, "re-normalise"),
        ({"directions": unit}, {**about, "layers": "[1]"}, "from 0 to 0"),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=message) as caught:
            RefusalDirections.load(path)
        assert "r.safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="no refusal directions"):
        RefusalDirections.load(path)
