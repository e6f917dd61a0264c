"""The four first-pass prompts, which permit refusal more and more strongly, and the forced second-pass prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass

REFUSAL = "UNANSWERED"

# From the widely known to the obscure; a prompt with k refusals shows its k last examples unanswered.
# None is about a capital or any other place, so that no geography question is answered by an example.
EXAMPLES = (
    ("What is the chemical symbol for sodium?", "Na"),
    ("How many legs does a spider have?", "8"),
    ("Who wrote the play Hamlet?", "William Shakespeare"),
    ("Which planet is closest to the Sun?", "Mercury"),
    ("Who discovered Jupiter's moon Amalthea?", "Edward Emerson Barnard"),
    ("Who received the 1953 Nobel Prize in Chemistry?", "Hermann Staudinger"),
    ("Who composed the opera The Cunning Little Vixen?", "Leoš Janáček"),
    ("What is the atomic number of hafnium?", "72"),
    ("In which year was the element rhenium discovered?", "1925"),
    ("Who proved the four-square theorem in 1770?", "Joseph-Louis Lagrange"),
)
ORDER = (0, 6, 1, 7, 2, 8, 4, 3, 9, 5)  # answered and unanswered examples take turns

TASK = "Answer the question with a short fact. Write your answer between <answer> and </answer>."
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """An instruction followed by ten worked examples, of which the `refusals` most obscure are left unanswered.

    Args:
        name: how results refer to the prompt.
        instruction: what the model is told about refusing.
        refusals: how many of the ten examples answer UNANSWERED.

    >>> PROMPTS["refuse-1"].render("Who painted Guernica?").splitlines()[-2:]
    ['Question: Who painted Guernica?', 'Answer:']
    """

    name: str
    instruction: str
    refusals: int

    def render(self, question: str) -> str:
        """The full text that is sent for one question."""
        unanswered = range(len(EXAMPLES) - self.refusals, len(EXAMPLES))
        shown = [
            f"Question: {EXAMPLES[i][0]}\nAnswer: <answer>{REFUSAL if i in unanswered else EXAMPLES[i][1]}</answer>"
            for i in ORDER
        ]
        return "\n\n".join((f"{TASK} {self.instruction}", *shown, f"Question: {question.strip()}\nAnswer:"))


PROMPTS = {
    prompt.name: prompt
    for prompt in (
        Prompt(
            name="refuse-0",
            instruction=f"If you have no idea at all, you may write {REFUSAL} instead.",
            refusals=0,
        ),
        Prompt(
            name="refuse-1",
            instruction=f"If you do not know the answer, write {REFUSAL} instead.",
            refusals=1,
        ),
        Prompt(
            name="refuse-4",
            instruction=f"If you are unsure of the answer, write {REFUSAL} instead of guessing.",
            refusals=4,
        ),
        Prompt(
            name="refuse-6",
            instruction="Answer only if you are certain. A wrong answer is worse than none: "
            f"in any doubt write {REFUSAL}.",
            refusals=6,
        ),
    )
}
FORCED_PROMPT = Prompt(
    name="forced",
    instruction="Always give an answer. If you do not know it, give your best guess.",
    refusals=0,
)


def answer_of(response: str) -> str:
    """What stands in the first answer tag, or the whole response where there is none; stripped.

    A closing tag may be missing, because generation usually stops at it.

    >>> answer_of("Sure. <answer> Paris </answer> <answer>Rome</answer>")
    'Paris'
    >>> answer_of("I would say Paris")
    'I would say Paris'
    """
    found = _TAG.search(response)
    return (found.group(1) if found else response).strip()


def is_refusal(response: str) -> bool:
    """Whether the first answer tag holds exactly UNANSWERED (paper, section 3).

    >>> is_refusal("<answer>UNANSWERED</answer>"), is_refusal("UNANSWERED"), is_refusal("<answer>unsure</answer>")
    (True, False, False)
    """
    found = _TAG.search(response)
    return found is not None and found.group(1).strip() == REFUSAL


def require_no_leak(questions: list[str]) -> None:
    """Refuses questions that the worked examples already answer.

    Raises:
        ValueError: naming the question.
    """
    shown = {_bare(question) for question, _ in EXAMPLES}
    for question in questions:
        if _bare(question) in shown:
            raise ValueError(f"questions: {question!r} is a worked example of the prompts; leave it out")


def _bare(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.casefold()))
