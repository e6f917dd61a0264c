"""A small victim behind a service, copied through its answers, with and without defences. No download."""

import pandas as pd

from gfmextract import EmbeddingRegression, EmbeddingService, defenses, scenarios
from gfmextract.baselines import TextOnly
from gfmextract.extraction import PermutedAnswers
from gfmextract.pretraining import PretrainingConfig, pretrain
from gfmextract.synthetic import World, summaries

world = World.of(0)
config = PretrainingConfig(epochs=3, batch_size=128, feature_mask=0.5)  # trained in place, kept in the user's cache
victim = pretrain(world.pretraining(0, domains=80), summaries, world.tower, config)
queried, unseen = world.domain(0, nodes=160, copies=2)  # two graphs of a domain the victim never saw
grid = scenarios.query_budget(queried, fractions=[0.1, 1.0], test=unseen)

attack = EmbeddingRegression(backbone="sage", layers=2, seed=0)
found = []
for which in (TextOnly(), attack, PermutedAnswers(backbone="sage", layers=2)):
    found.append(which.run(EmbeddingService(victim), grid, text=victim.encode_text).table())
columns = ["attack", "queries", "accuracy", "victim_accuracy", "fidelity", "certified_agreement"]
print(pd.concat(found)[columns].round(2).to_string(index=False))

# the same budget behind coarse answers that carry a mark
egos = grid.rows[-1].query_egos()
texts = [queried.texts[node] for node in egos.roots.tolist()]
reference = EmbeddingService(victim).answer(egos)
mark = defenses.Watermark(key=7, egos=egos, texts=texts, reference=reference, encode_text=victim.encode_text)
service = EmbeddingService(victim, budget=5_000, defenses=[defenses.Quantize(bits=4), mark])
copy = attack.run(service, grid, text=victim.encode_text)
print(f"behind 4 bits and a mark: fidelity {copy.rows[-1]['fidelity']:.2f}, {service.total_queries} queries answered")
print(f"watermark: copy p = {mark.verify(copy.encoder).pvalue:.4f}, victim p = {mark.verify(victim).pvalue:.2f}")
