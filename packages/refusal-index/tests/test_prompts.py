import re

import pytest

from refusal_index.capitals import capitals
from refusal_index.graders import aliases, normalise
from refusal_index.prompts import EXAMPLES, FORCED_PROMPT, PROMPTS, REFUSAL, answer_of, is_refusal, require_no_leak


def test_the_four_prompts_show_0_1_4_6_refusals_among_ten_examples():
    shown = [prompt.render("Who?").count(f"<answer>{REFUSAL}</answer>") for prompt in PROMPTS.values()]
    assert shown == [0, 1, 4, 6]
    assert all(prompt.render("Who?").count("Question:") == 11 for prompt in PROMPTS.values())
    assert len({prompt.instruction for prompt in PROMPTS.values()}) == 4


def test_only_the_forced_prompt_never_speaks_of_refusing():
    assert REFUSAL not in FORCED_PROMPT.render("Who?")
    assert all(REFUSAL in prompt.instruction for prompt in PROMPTS.values())


def test_examples_differ_between_prompts_in_their_answers_only():
    def questions(prompt):
        return re.findall(r"Question: (.*)", prompt.render("Who?"))

    assert len({tuple(questions(prompt)) for prompt in (*PROMPTS.values(), FORCED_PROMPT)}) == 1
    assert questions(FORCED_PROMPT)[-1] == "Who?"


def test_no_example_gives_away_a_capital():
    asked, _ = capitals()
    golds = {normalise(alias) for gold in asked.golds for alias in aliases(gold)}
    for question, answer in EXAMPLES:
        assert normalise(answer) not in golds
        assert "capital" not in question.lower()
    require_no_leak(list(asked.questions))


def test_a_question_that_an_example_answers_is_refused():
    with pytest.raises(ValueError, match="worked example"):
        require_no_leak(["Who?", "  who wrote the play HAMLET"])


@pytest.mark.parametrize(
    ("response", "answer", "refused"),
    [
        ("<answer>UNANSWERED</answer>", "UNANSWERED", True),
        ("<answer> UNANSWERED\n</answer> <answer>Paris</answer>", "UNANSWERED", True),
        ("<answer>Paris</answer><answer>UNANSWERED</answer>", "Paris", False),
        ("<ANSWER>Paris", "Paris", False),
        ("<answer>unanswered</answer>", "unanswered", False),
        ("UNANSWERED", "UNANSWERED", False),
        ("", "", False),
    ],
)
def test_reads_the_first_answer_tag(response, answer, refused):
    assert (answer_of(response), is_refusal(response)) == (answer, refused)
