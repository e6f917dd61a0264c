"""TRADES and UAD on handwritten digits, a few epochs each, side by side under attack. No download."""

from uadat import RobustTrainer, TRADESLoss, UADLoss, robust_report
from uadat.digits import EPS, digits
from uadat.image_splits import as_tensors, loader
from uadat.network import small_resnet

data = digits(0)
reports = {}
for name, loss in {"UAD": UADLoss(EPS, layer="stage2"), "TRADES": TRADESLoss(EPS)}.items():
    trainer = RobustTrainer(small_resnet(10, seed=0), loss, epochs=4, schedule="onecycle", device="cpu")
    trainer.fit(loader(data.train, 100, shuffle_seed=0), loader(data.validation, 100))
    reports[name] = robust_report(trainer.best_model, as_tensors(data.test, 30), eps=EPS, attacks="quick")
    print(f"{name}: {reports[name].flag_text()}")

print(reports.pop("UAD").compare(reports, name="UAD").to_markdown())
