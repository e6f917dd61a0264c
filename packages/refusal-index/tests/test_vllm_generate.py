"""vLLM pins its own torch and is not installed here: a stand-in with the parts of its interface that are used."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from refusal_index.vllm_generate import VLLMGenerate


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    include_stop_str_in_output: bool
    stop: list = field(default_factory=list)


class LLM:
    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        self.seen = ("generate", prompts, sampling_params)
        return [SimpleNamespace(outputs=[SimpleNamespace(text=f"<{prompt}>")]) for prompt in prompts]

    def chat(self, messages, sampling_params, *, use_tqdm=True):
        outputs = self.generate([chat[-1]["content"] for chat in messages], sampling_params)
        self.seen = ("chat", messages, sampling_params)
        return outputs


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.SamplingParams = SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.parametrize("chat", [True, False])
def test_sends_all_texts_at_once_and_keeps_their_order(chat):
    llm = LLM()
    generate = VLLMGenerate(llm=llm, temperature=0.0, max_tokens=9, chat=chat)
    assert generate(["a", "b"]) == ["<a>", "<b>"]
    method, sent, parameters = llm.seen
    assert method == ("chat" if chat else "generate")
    assert sent == ([[{"role": "user", "content": t}] for t in "ab"] if chat else ["a", "b"])
    assert all((p.temperature, p.max_tokens, p.stop) == (0.0, 9, ["</answer>"]) for p in parameters)
    assert all(p.include_stop_str_in_output for p in parameters)


def test_a_repeated_text_gets_a_seed_of_its_own():
    llm = LLM()
    generate = VLLMGenerate(llm=llm)
    generate(["a", "a"])
    generate(["a"])
    third = llm.seen[2][0].seed
    VLLMGenerate(llm=llm)(["a", "a"])
    assert len({third, *(p.seed for p in llm.seen[2])}) == 3
