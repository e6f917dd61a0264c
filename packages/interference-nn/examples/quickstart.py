"""A small digit classifier behind backgrounds, trained in place, and what the ladder leaves of it. No download."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from interference_nn import InterferenceNet, ProceduralBackgrounds, fit, ladder
from interference_nn.baselines import fit_baseline
from interference_nn.digits import load_digits
from interference_nn.network import Classifier, conv_backbone
from interference_nn.training import Recipe

digits = load_digits(0)
loader = DataLoader(TensorDataset(digits.train_images, digits.train_labels), batch_size=128, shuffle=True)
fast = Recipe(epochs=5, lr=1e-2, optimizer="adamw", schedule="onecycle")

torch.manual_seed(0)
plain, robust = (Classifier(conv_backbone(), 96, 10) for _ in range(2))
fit_baseline(plain, loader, "plain", fast)
fit_baseline(robust, loader, "fast", fast, eps=0.1)

bank = ProceduralBackgrounds(n=256, classes=8, size=8, channels=1)
net = InterferenceNet.from_backbone(plain.backbone, classes=10, bank=bank, alpha=0.5, draws=8)
fit(net, loader, head_epochs=1, finetune_epochs=5, lr=1e-2, optimizer="adamw", schedule="onecycle")

some = digits.test_images[:40], digits.test_labels[:40]
report = ladder(net, some, eps=0.1, baselines={"plain": plain, "fast AT": robust}, effort="quick", probes=0)
print(report.table()[["model", "R0", "R1", "R3", "R5", "worst case", "over-claim"]].round(2).to_string(index=False))
print(f"better than the strongest baseline? {report.verdict}: {report.reason}")
