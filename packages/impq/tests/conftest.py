import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import bpe_tokenizer

from impq.corpus import python_documentation


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a small Llama and its tokenizer, whose blocks differ in how much they matter."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = bpe_tokenizer([python_documentation()["test"]], 300)
    model = tiny_lm(tokenizer, layers=4, width=32, context=64)
    with torch.no_grad():
        for k, block in enumerate(model.model.layers):
            for parameter in block.parameters():
                parameter.mul_(1 + k)
        model.lm_head.weight.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
