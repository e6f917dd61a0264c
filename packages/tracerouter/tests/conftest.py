import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from small_bench import small_bench
from tiny_router import SMALL, WORDS, prompts

from tracerouter.hf_router import TraceRouter
from tracerouter.pairs import Pair


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture(scope="session")
def model(tokenizer):
    """A random Llama of 4 blocks whose weights are large enough for blocks to matter."""
    model = tiny_lm(tokenizer, layers=4, width=32, seed=1)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="session")
def pairs():
    """w1 is the concept, w2 stands in its place."""
    return [Pair(sensitive=a, matched=b) for a, b in zip(prompts("w1"), prompts("w2"), strict=True)]


@pytest.fixture(scope="session")
def trace(model, tokenizer, pairs):
    """Latents at both bypassable sites, from block 1 on."""
    return TraceRouter(model, tokenizer, sites=("attn_out", "mlp_out"), onset=1, **SMALL).fit(pairs)


@pytest.fixture(scope="session")
def dense(model, tokenizer, pairs):
    """Coordinates of the residual stream."""
    return TraceRouter(model, tokenizer, unit="coordinate", onset=1, **SMALL).fit(pairs)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where small models are kept once trained."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bench(cache):
    """The embedded default in small; whatever it trains is kept among the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(cache))
        yield small_bench()
