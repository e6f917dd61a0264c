import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from refusal_index.graded import FORCED, NOT_ATTEMPTED
from refusal_index.graders import LLMGrader
from refusal_index.prompts import FORCED_PROMPT, PROMPTS
from refusal_index.runner import TwoPassRunner

N = 23
QUESTIONS = [f"What is {i} plus one?" for i in range(N)]
GOLDS = [str(i + 1) for i in range(N)]


class Respondent:
    """Refuses the last 2, 4, 6, 8 questions under the four prompts; knows the even ones."""

    def __init__(self):
        self.asked = Counter()
        self.calls = []

    def __call__(self, texts):
        self.calls.append(len(texts))
        self.asked.update(texts)
        return [self.reply(text) for text in texts]

    def reply(self, text):
        i = int(text.rsplit("What is ", 1)[1].split()[0])
        strength = next((k for k, p in enumerate(PROMPTS.values()) if p.instruction in text), None)
        if strength is not None and i >= N - 2 * (strength + 1):
            return "<answer>UNANSWERED</answer>"
        return f"<answer>{i + 1 if i % 2 == 0 else 'no idea'}</answer>"

    def count(self, prompt):
        return sum(n for text, n in self.asked.items() if prompt.instruction in text)


def test_counts_labels_and_outcomes():
    respondent = Respondent()
    report = TwoPassRunner(generate=respondent, batch_size=5, model="m", settings={"t": 0})(QUESTIONS, GOLDS)
    for k, prompt in enumerate(PROMPTS):
        refused, answered = range(N - 2 * (k + 1), N), range(N - 2 * (k + 1))
        expected = (
            sum(i % 2 for i in refused),
            sum(1 - i % 2 for i in refused),
            sum(i % 2 for i in answered),
            sum(1 - i % 2 for i in answered),
        )
        assert report.outcomes[prompt].counts == expected
    assert (report.model, report.settings) == ("m", {"t": 0})


@pytest.mark.parametrize("prompts", ["paper", ["refuse-4"], ["refuse-6", "refuse-0"]])
def test_second_pass_asks_each_refused_question_once_and_nothing_twice(prompts):
    respondent = Respondent()
    report = TwoPassRunner(generate=respondent, prompts=prompts, batch_size=4)(QUESTIONS, GOLDS)
    names = list(PROMPTS) if prompts == "paper" else prompts
    assert set(respondent.asked.values()) == {1}
    assert max(respondent.calls) <= 4
    assert [respondent.count(PROMPTS[name]) for name in names] == [N] * len(names)
    first = report.table[report.table["pass"] == 1]
    refused = set(first.loc[first["label"] == NOT_ATTEMPTED, "question_id"])
    assert respondent.count(FORCED_PROMPT) == len(refused) == max(2 * (list(PROMPTS).index(n) + 1) for n in names)
    if len(names) == 1:  # check 12: as many second-pass generations as refusals
        assert respondent.count(FORCED_PROMPT) == int((first["label"] == NOT_ATTEMPTED).sum())
    assert sum(respondent.asked.values()) == len(names) * N + len(refused)


def test_no_refusal_no_second_pass():
    report = TwoPassRunner(generate=lambda texts: ["<answer>1</answer>"] * len(texts))(QUESTIONS, GOLDS)
    assert FORCED not in set(report.table["prompt"])


@pytest.mark.parametrize("stop", range(0, 26, 3))
def test_interrupted_anywhere_the_same_run_goes_on_and_ends_the_same(tmp_path, stop):
    whole = TwoPassRunner(generate=Respondent(), batch_size=4)(QUESTIONS, GOLDS)

    class Interrupted(Respondent):
        def __call__(self, texts):
            if len(self.calls) >= stop:
                raise KeyboardInterrupt
            return super().__call__(texts)

    cache = tmp_path / "j.jsonl"
    first, second = Interrupted(), Respondent()
    interrupted = TwoPassRunner(generate=first, cache=cache, batch_size=4)
    with pytest.raises(KeyboardInterrupt):  # the whole run takes 4 * 6 + 2 calls
        interrupted(QUESTIONS, GOLDS)
    report = TwoPassRunner(generate=second, cache=cache, batch_size=4)(QUESTIONS, GOLDS)
    assert set((first.asked + second.asked).values()) == {1}
    assert report.table.equals(whole.table)


def test_changed_model_question_or_prompt_is_asked_anew(tmp_path):
    cache = tmp_path / "j.jsonl"

    def generations(questions=QUESTIONS, model="m", prompts=("refuse-0",)):
        respondent = Respondent()
        TwoPassRunner(generate=respondent, cache=cache, model=model, prompts=prompts)(questions, GOLDS)
        return sum(respondent.asked.values())

    assert generations() == N + 2
    assert generations() == 0
    assert generations(model="n") == N + 2
    assert generations(questions=["Say: What is 0 plus one?", *QUESTIONS[1:]]) == 1
    assert generations(prompts=("refuse-0", "refuse-1")) == N + 2


def test_progress_reaches_the_total_of_each_prompt():
    seen = []
    runner = TwoPassRunner(generate=Respondent(), batch_size=10, progress=lambda *s: seen.append(s))
    runner(QUESTIONS, GOLDS)
    assert [s for s in seen if s[0] == "refuse-0"] == [("refuse-0", 10, N), ("refuse-0", 20, N), ("refuse-0", N, N)]
    assert seen[-1] == ("forced", 8, 8)


def test_any_grader_and_any_template():
    class Bare:
        name = "bare"

        def render(self, question):
            return question

    class Forced(Bare):
        name = "forced"

        def render(self, question):
            return f"{question} Guess!"

    def grader(questions, golds, answers):
        return ["CORRECT" if gold in answer else "NOT_ATTEMPTED" for gold, answer in zip(golds, answers, strict=True)]

    runner = TwoPassRunner(
        generate=lambda texts: ["It is 7." if "Guess" in text or "six" in text else "Hm." for text in texts],
        grader=grader,
        prompts=[Bare()],
        forced=Forced(),
    )
    report = runner(["six plus one?", "seven?", "eight?"], ["7", "7", "8"])
    assert report.outcomes["bare"].counts == (1, 1, 0, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompts": ["nice"]}, "'nice' is none of refuse-0"),
        ({"prompts": "refuse-0"}, r"prompts must be 'paper' or a list such as \['refuse-1'\], got 'refuse-0'"),
        ({"prompts": None}, "prompts must be 'paper' or a list"),
        ({"prompts": [3]}, "3 is neither a name nor a template"),
        ({"prompts": []}, "need different names"),
        ({"prompts": ["refuse-0", "refuse-0"]}, "need different names"),
        ({"grader": "fuzzy"}, "grader must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_names_a_wrong_setting(bad, message):
    with pytest.raises(ValueError, match=message):
        TwoPassRunner(generate=Respondent(), **bad)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generate": lambda texts: ["x"]}, "generate: must return a list with one text for each of 16, got 1 val"),
        ({"generate": lambda texts: [None] * len(texts)}, "generate: .* got 16 values, among them NoneType"),
        ({"generate": lambda texts: None}, "generate: .* got no list"),
        ({"generate": lambda texts: "x" * len(texts)}, "generate: .* got no list"),
        ({"generate": lambda texts: [{"generated_text": "x"}] * len(texts)}, "HFGenerate.from_pipeline"),
        ({"generate": lambda texts: [[{"generated_text": "x"}]] * len(texts)}, "HFGenerate.from_pipeline"),
        ({"grader": lambda q, g, a: None}, "grader: .* got no list"),
        ({"grader": lambda q, g, a: [1, "z"] + ["CORRECT"] * (len(a) - 2)}, "grader: .* got 1$"),
        ({"grader": lambda q, g, a: ["CORRECT"]}, "grader: .* got 1 labels"),
        ({"grader": lambda q, g, a: ["RIGHT"] * len(a)}, "grader: .* got 'RIGHT'"),
    ],
)
def test_names_a_broken_generator_or_grader(changed, message):
    with pytest.raises(ValueError, match=message):
        TwoPassRunner(**{"generate": Respondent(), **changed})(QUESTIONS, GOLDS)


def test_grades_of_a_model_survive_an_interruption(tmp_path):
    class Marker:
        def __init__(self, limit):
            self.limit, self.asked = limit, Counter()

        def __call__(self, texts):
            if sum(self.asked.values()) >= self.limit:
                raise KeyboardInterrupt
            self.asked.update(texts)
            return ["B" if "answer: no idea" in text else "A" for text in texts]

    def run(marker, model="judge"):
        grader = LLMGrader(generate=marker, model=model)
        return TwoPassRunner(generate=Respondent(), grader=grader, cache=tmp_path / "j", batch_size=4)(QUESTIONS, GOLDS)

    first, second, third, other = Marker(10), Marker(1000), Marker(0), Marker(1000)
    with pytest.raises(KeyboardInterrupt):
        run(first)
    report = run(second)
    assert sum(first.asked.values()) == 12
    assert set((first.asked + second.asked).values()) == {1}  # an answer that returns under another prompt is not new
    assert run(third).table.equals(report.table)
    assert report.table.equals(TwoPassRunner(generate=Respondent())(QUESTIONS, GOLDS).table)
    run(other, model="another judge")
    assert other.asked == first.asked + second.asked


def test_names_questions_that_do_not_fit():
    run = TwoPassRunner(generate=Respondent())
    with pytest.raises(ValueError, match="one length, got 23, 22 and 23"):
        run(QUESTIONS, GOLDS[1:])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        run(QUESTIONS[:2], GOLDS[:2], ["a", "a"])
    with pytest.raises(ValueError, match="worked example"):
        run(["Who wrote the play Hamlet?"], ["Shakespeare"])


KILLED = """
import sys, time
from pathlib import Path
from refusal_index.runner import TwoPassRunner
def slow(texts):
    with open(sys.argv[2], "a") as log:
        log.writelines(f"{hash(t)}\\n" for t in texts)
    time.sleep(0.03)
    return ["<answer>UNANSWERED</answer>"] * len(texts)
TwoPassRunner(generate=slow, cache=Path(sys.argv[1]), batch_size=2)([f"q{i}?" for i in range(40)], ["a"] * 40)
print("done")
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_at_most_one_batch(tmp_path):
    cache, log = tmp_path / "j.jsonl", tmp_path / "asked"
    command = [sys.executable, "-c", KILLED, str(cache), str(log)]
    moments, kills, deadline = random.Random(0), 0, time.monotonic() + 60

    def size():
        return cache.stat().st_size if cache.exists() else 0

    while kills < 4 and time.monotonic() < deadline:
        before = size()
        process = subprocess.Popen(command, env={"PYTHONHASHSEED": "0"})
        while size() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        kills += process.wait() < 0 and size() > before
    assert kills >= 3
    out = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, stdout=subprocess.PIPE, text=True, timeout=120).stdout
    assert out == "done\n"
    asked = Counter(log.read_text().split())
    assert len(asked) == 5 * 40
    assert sum(asked.values()) <= 5 * 40 + 2 * kills
