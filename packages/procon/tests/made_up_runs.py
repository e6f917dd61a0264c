"""Runs as `procon.trl_comparison.compare` leaves them, without a model."""

import numpy as np

QUESTIONS = 12


def record(name, alpha=0.0, *, seed=0, loss=1.0, odds=0.0, refused=0.5, cosine=0.5):
    """One run; odds and losses are spread evenly around what is asked for."""
    spread = np.linspace(-0.2, 0.2, QUESTIONS)
    answers = [i < refused * QUESTIONS for i in range(QUESTIONS)]
    return {
        "settings": {"arm": {"name": name, "alpha": alpha} if name else None, "seed": seed},
        "flagged": {"log_odds": (odds + spread).tolist(), "refused": answers},
        "neutral": {"log_odds": (odds - 9 + spread).tolist(), "refused": [False] * QUESTIONS},
        "task_loss": (loss + spread).tolist(),
        "cosines": [1.0, 0.9, cosine, cosine],
    }


def curves(lead, *, seeds=(0, 1), noise=0.0):
    """ProCon's and the random directions' refusal over task loss, log-odds 10 · loss - 10 and `lead` more for ProCon.

    The arms reach different losses, so that nothing can be said without interpolating.
    """
    made = []
    for seed in seeds:
        made += [record(None, seed=seed, odds=6.0, refused=1.0, cosine=1.0), record("sft", seed=seed)]
        made += [record("procon_s", a, seed=seed, loss=x, odds=10 * x - 10 + lead) for a, x in ((10, 1.1), (30, 1.3))]
        made += [record("random", a, seed=seed, loss=x, odds=10 * x - 10) for a, x in ((10, 1.2), (30, 1.6))]
    if noise:
        rng = np.random.default_rng(1)
        for one in made:
            one["flagged"]["log_odds"] = (np.array(one["flagged"]["log_odds"]) + noise * rng.normal(size=12)).tolist()
    return made
