"""A small model with a flagged behaviour: where it enters, the path it takes, and the path cut. No download."""

from tracerouter import TraceRouter
from tracerouter.hf_flagged_lm import flagged_lm, is_flagged

lm = flagged_lm(0, steps=250, blocks=3, pairs=100, tests=60)  # trained in place, kept in the user's cache
router = TraceRouter(lm.model, lm.tokenizer, sae_width=256, sae_k=8, sae_steps=40, batch_size=50)
trace = router.fit(lm.pairs, neutral=lm.neutral)
print(f"sensitivity by block {[round(score, 3) for score in trace.onset_curve]}: onset at block {trace.onset}")
print(trace.summary().round(2).to_string(index=False))

right = {question.prompt: question.answer for question in lm.benign}
report = router.evaluate(
    trace,
    [question.prompt for question in lm.flagged],
    list(right),
    controls=["random", "local", "source", "path_only"],
    harms=lambda prompt, answer: is_flagged(answer),
    serves=lambda prompt, answer: answer == right[prompt],
    max_new_tokens=3,
)
print(report[["setting", "units", "ASR", "utility", "J"]].round(2).to_string(index=False))
