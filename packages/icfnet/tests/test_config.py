import pytest

from icfnet.config import ICFNetConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modalities": ("wsi", "proteins")}, "got 'proteins'"),
        ({"modalities": ()}, "at least one"),
        ({"modalities": ("wsi", "wsi")}, "distinct"),
        ({"loss": "cox"}, "loss must be one of balanced_nll, nll"),
        ({"fusion": "early"}, "fusion must be"),
        ({"aux_heads": "both"}, "aux_heads must be"),
        ({"aux_heads": "post", "fusion": "concat"}, "aux_heads='post'"),
        ({"token_mixing": "none"}, "token_mixing must be"),
        ({"width": 10}, "heads must divide width"),
        ({"feedforward": 0}, "feedforward must be"),
        ({"n_bins": 1}, "n_bins must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"beta": 1.5}, "beta must be"),
        ({"ot_reg": 0.0}, "ot_reg must be"),
        ({"aux_weight": -1.0}, "aux_weight must be"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        ICFNetConfig(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"modalities": ("wsi",)}, ("path",)),
        ({"modalities": ("wsi", "genes")}, ("gene", "path_gene", "path")),
        ({"modalities": ("text", "wsi")}, ("path", "path_text", "text")),
        ({"fusion": "late"}, ("gene", "path", "text")),
    ],
)
def test_tokens(changes, tokens):
    assert ICFNetConfig(**changes).tokens == tokens
