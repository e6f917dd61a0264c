"""A made-up cohort whose slides were lost: ICFNet on genes and text beside a penalised Cox model. No download."""

from icfnet import ICFNetSurvival, evaluate, synthetic_cohort

train, test = synthetic_cohort(0, patients=450, training=300).cohort.without("wsi").split(0)
model = ICFNetSurvival(width=32, epochs=10, batch_size=16, learning_rate=1e-3, optimizer="adamw").fit(train)
report = evaluate(model, test, train=train, resamples=100)
print(report.to_markdown())
print(report.compare("coxnet").to_markdown())
