"""The Refusal Index in two minutes: counts you have, then a pretend model run in two passes."""

import random

from refusal_index import TwoPassRunner, refusal_index

# 1. You have counts: refused & wrong, refused & right, answered & wrong, answered & right.
index = refusal_index(counts=(1500, 360, 1658, 808))
print(f"RI {index.ri:.2f}, 95 % interval {index.ci[0]:.2f} to {index.ci[1]:.2f}\n")

# 2. You have a model: any function from texts to texts. This one feels, somewhat unreliably, how hard a fact is,
#    and the more strongly a prompt permits refusal, the smaller a doubt makes it refuse.
QUESTIONS = [f"What is the code of item {i}?" for i in range(600)]
CODES = [f"code {i * 37 % 1000}" for i in range(600)]
DOUBT_NEEDED = {"no idea at all": 1.3, "do not know the answer": 0.8, "unsure": 0.2, "certain": -0.4}


def model(texts: list[str]) -> list[str]:
    answers = []
    for text in texts:
        i = int(text.rsplit("item ", 1)[1].split("?")[0])
        rng = random.Random(i)
        hardness = rng.gauss(0, 1)
        doubt = 0.6 * hardness + 0.8 * rng.gauss(0, 1)
        instruction = text.split("\n")[0]
        needed = next((level for words, level in DOUBT_NEEDED.items() if words in instruction), float("inf"))
        said = "UNANSWERED" if doubt > needed else CODES[i] if hardness < 0 else "code 0"
        answers.append(f"<answer>{said}</answer>")
    return answers


report = TwoPassRunner(generate=model, model="pretend")(QUESTIONS, CODES)
columns = ["ri", "ri_low", "ri_high", "correct_rate", "refusal_rate", "correct_given_attempted", "f_score"]
print(report.to_frame()[columns].round(2).to_string())
print("\nvariation over the four prompts:")
print(report.stability()["cv"].round(2).to_string())
print(f"\none index for all four? p = {report.homogeneity().p_value:.2f}")
