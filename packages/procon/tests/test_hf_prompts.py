import pytest
import torch
from aisec_common.torch.hf_tokenizer import word_tokenizer
from tokenizers.processors import TemplateProcessing

from procon.hf_prompts import encode, generation_prompts

WORDS = ["[INST]", "[/INST]", "<user>", "<assistant>", "<end>", "rain", "sun", "two", "yes"]
CHATML = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HEADER_NEVER_ADDED = "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + ' [INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer(template=None):
    made = word_tokenizer(WORDS)
    made.chat_template = template
    return made


def test_text_stays_text_without_a_template():
    assert generation_prompts(tokenizer(), ["rain", "sun two"]) == ["rain", "sun two"]


def test_the_template_is_applied_up_to_the_reply():
    turn = [{"role": "user", "content": "rain"}, {"role": "assistant", "content": "yes"}]
    prompts = ["rain", [*turn, {"role": "user", "content": "sun"}]]
    assert generation_prompts(tokenizer(CHATML), prompts) == [
        "<user> rain <end> <assistant>",
        "<user> rain <end> <assistant> yes <end> <user> sun <end> <assistant>",
    ]


def test_a_template_whose_replies_follow_the_turn_at_once_needs_no_generation_prompt():
    assert generation_prompts(tokenizer(LLAMA_2), ["rain"]) == ["<s> [INST] rain [/INST]"]


@pytest.mark.parametrize(
    ("template", "prompts", "error", "message"),
    [
        (HEADER_NEVER_ADDED, ["rain"], ValueError, "add_generation_prompt adds nothing"),
        (CHATML, [], ValueError, "prompts is empty"),
        (None, [[{"role": "user", "content": "rain"}]], ValueError, "no chat_template"),
        (CHATML, "rain", TypeError, "one text"),
    ],
)
def test_wrong_prompts(template, prompts, error, message):
    with pytest.raises(error, match=message) as caught:
        generation_prompts(tokenizer(template), prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_on_the_left_whatever_the_tokenizer_does(side):
    words = tokenizer()
    words.padding_side = side
    batch = encode(words, ["rain", "sun two yes"])
    rain, sun, two, yes = (words.convert_tokens_to_ids(word) for word in WORDS[5:])
    assert batch["input_ids"].tolist() == [[0, 0, rain], [sun, two, yes]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert words.padding_side == side
    ours = words(["rain", "sun two yes"], padding=True, padding_side="left", return_tensors="pt")
    assert torch.equal(ours["input_ids"], batch["input_ids"])


def test_a_padding_token_is_not_needed():
    words = tokenizer()
    words.pad_token = None
    assert encode(words, ["rain", "sun two"])["input_ids"][0, 0] == words.eos_token_id
    assert words.pad_token is None


def test_the_first_token_is_not_written_twice():
    for template, text, expected in ((None, "rain", 1), (LLAMA_2, "<s> [INST] rain [/INST]", 1)):
        words = tokenizer(template)
        words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
        ids = encode(words, generation_prompts(words, ["rain"]))["input_ids"][0].tolist()
        assert words.decode(ids) == ("<s> " + text).replace("<s> <s>", "<s>")
        assert ids.count(words.bos_token_id) == expected


def test_texts_without_tokens():
    with pytest.raises(ValueError, match="texts is empty"):
        encode(tokenizer(), [])
    with pytest.raises(ValueError, match="number 1 has no token"):
        encode(tokenizer(), ["rain", ""])
