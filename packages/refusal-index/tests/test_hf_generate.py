import copy
import warnings

import pytest
import torch
from tiny_lm import character_tokenizer, tiny
from transformers import pipeline

from refusal_index.hf_generate import STOP, AnswerClosed, GumbelNoise, HFGenerate
from refusal_index.prompts import PROMPTS
from refusal_index.runner import TwoPassRunner

TEXTS = [
    PROMPTS["refuse-4"].render(q) for q in ("Who painted Guernica?", "What is it?", "Who wrote the Iliad and when?")
]


def greedy_one_by_one(model, tokenizer, text, steps):
    """The slow reference: no batch, no padding, no cache."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(steps):
        with torch.no_grad():
            following = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        if following == 1:
            break
        ids = torch.cat([ids, following[None, None]], 1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_greedy_batches_equal_single_texts_without_cache_and_padding(kind):
    model, tokenizer = tiny(kind), character_tokenizer()
    generate = HFGenerate(model, tokenizer, max_new_tokens=6, temperature=0)
    expected = [greedy_one_by_one(model, tokenizer, text, 6) for text in TEXTS]
    assert generate(TEXTS) == expected
    assert generate(TEXTS[::-1]) == expected[::-1]
    assert (generate._prefix is not None) == (kind != "mistral")
    assert generate(TEXTS[:1]) == expected[:1]


def test_the_shared_prefix_is_reused_and_follows_a_change_of_prompt():
    model, tokenizer = tiny(), character_tokenizer()
    generate = HFGenerate(model, tokenizer, max_new_tokens=3, temperature=0)
    lengths = []
    forward = model.forward

    def spy(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    model.forward = spy
    generate(TEXTS[:2])
    prefix = lengths[0]
    assert prefix > 500
    assert max(lengths[1:]) < 60
    lengths.clear()
    generate(TEXTS[1:])
    assert max(lengths) < 60
    other = [PROMPTS["refuse-0"].render(q) for q in ("Who painted Guernica?", "What is it?")]
    model.forward = forward
    assert generate(other) == [greedy_one_by_one(model, tokenizer, text, 3) for text in other]


def test_samples_depend_on_seed_text_and_number_but_not_on_batch_or_global_seed():
    model, tokenizer = tiny(), character_tokenizer()

    def fresh(seed=0):
        return HFGenerate(model, tokenizer, max_new_tokens=8, temperature=1.5, top_p=1.0, seed=seed)

    state = torch.get_rng_state()
    together = fresh()(TEXTS)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert [fresh()([text])[0] for text in TEXTS] == together
    assert fresh(1)(TEXTS) != together
    assert len(set(fresh()(TEXTS[:1] * 6))) > 1


def test_gumbel_noise_draws_from_the_truncated_distribution():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    noise = GumbelNoise([torch.Generator().manual_seed(0)], temperature=0.7, top_p=0.9)
    drawn = torch.stack([noise(torch.zeros(1, 1), scores).argmax() for _ in range(4000)])
    p = (scores[0] / 0.7).softmax(-1)
    assert p[:2].sum() > 0.9 > p[0]  # so two tokens stay
    expected = p[0] / p[:2].sum()
    assert abs((drawn == 0).float().mean() - expected) < 0.025
    assert set(drawn.tolist()) == {0, 1}


def test_stops_after_the_closing_tag_of_the_answer_only():
    tokenizer = character_tokenizer()
    prompt = tokenizer("<answer>8</answer>")["input_ids"]
    written = prompt + tokenizer("ab</answer")["input_ids"]
    stop = AnswerClosed(tokenizer, len(prompt))
    assert not stop(torch.tensor([written]), None).any()
    assert stop(torch.tensor([written + tokenizer(">")["input_ids"]]), None).all()


def test_response_ends_at_the_first_closing_tag(monkeypatch):
    model, tokenizer = tiny(), character_tokenizer()
    generate = HFGenerate(model, tokenizer, max_new_tokens=4, temperature=0)
    monkeypatch.setattr(tokenizer, "batch_decode", lambda ids, **_: [f"<answer>8{STOP} more"] * len(ids))
    assert generate(TEXTS[:2]) == [f"<answer>8{STOP}"] * 2


def test_uses_the_chat_template_where_there_is_one():
    generate = HFGenerate(tiny(), character_tokenizer(chat=True), max_new_tokens=1, temperature=0)
    assert generate.tokenizer.decode(generate._tokens(["hi"])[0]) == "[hi]>"
    plain = HFGenerate(tiny(), character_tokenizer(chat=True), chat=False)
    assert plain.tokenizer.decode(plain._tokens(["hi"])[0]) == "hi"


def test_loads_a_folder_of_safetensors(tmp_path):
    model, tokenizer = tiny(), character_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = HFGenerate.from_pretrained(str(tmp_path), max_new_tokens=6, temperature=0)
    assert loaded.model.dtype == torch.float32
    assert loaded(TEXTS) == HFGenerate(model, tokenizer, max_new_tokens=6, temperature=0)(TEXTS)


def test_takes_a_real_text_generation_pipeline_and_the_runner_names_it():
    model, tokenizer = tiny(), character_tokenizer()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    generate = HFGenerate.from_pipeline(pipe, max_new_tokens=6, temperature=0)
    assert generate(TEXTS) == HFGenerate(model, tokenizer, max_new_tokens=6, temperature=0)(TEXTS)
    questions, golds = ["Who?", "When?"], ["a", "b"]
    report = TwoPassRunner(generate=generate, prompts=["refuse-0"])(questions, golds)
    assert len(report.table) == 2

    def raw(texts):
        return pipe(texts, max_new_tokens=2)

    with pytest.raises(ValueError, match=r"pass HFGenerate\.from_pipeline\(pipe\)"):
        TwoPassRunner(generate=raw)(questions, golds)
    with pytest.raises(TypeError, match="pipe must be a pipeline"):
        HFGenerate.from_pipeline(model)


def test_sampling_defaults_of_the_checkpoint_do_not_leak_in():
    model, tokenizer = tiny(), character_tokenizer()
    plain = HFGenerate(copy.deepcopy(model), tokenizer, max_new_tokens=6, temperature=0)(TEXTS)
    model.generation_config.update(do_sample=True, temperature=0.1, top_k=3, repetition_penalty=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert HFGenerate(model, tokenizer, max_new_tokens=6, temperature=0)(TEXTS) == plain


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"temperature": float("nan")}]
)
def test_names_the_argument_out_of_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HFGenerate(tiny(), character_tokenizer(), **bad)


def test_no_texts_no_responses():
    assert HFGenerate(tiny(), character_tokenizer())([]) == []


@pytest.mark.gpu
def test_greedy_on_an_accelerator_equals_the_cpu():
    model, tokenizer = tiny(), character_tokenizer()
    expected = HFGenerate(model, tokenizer, max_new_tokens=6, temperature=0)(TEXTS)
    assert HFGenerate(model.to("cuda"), tokenizer, max_new_tokens=6, temperature=0)(TEXTS) == expected
