"""The arms of the study: what each does differently from plain fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from procon.config import ProConConfig

LIGHT = 0.3  # α of the light constant schedule
STRONG = 1.0  # α of the warm-up
WARMUP_SHARE = 3  # the warm-up takes a third of the standard steps


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Fine-tuning on benign data, and what is changed about it; the defaults are plain fine-tuning.

    Attributes:
        alpha: weight of the projection term; 0 is no term.
        warmup: the term acts in the added warm-up steps alone.
        layers: blocks it acts on.
        random_direction: random unit vectors in place of the refusal directions.
        safety: safety rows are mixed in.
        longer: as many steps as with a warm-up.
        kl: weight of KL(base || tuned) on response tokens.
        frozen_safety_layers: no adapters in the safety layers.
        after: what is done to the adapters once they are trained.
        trained: False leaves the aligned model as it is.
    """

    alpha: float = 0.0
    warmup: bool = False
    layers: Literal["all"] | tuple[int, ...] = "all"
    random_direction: bool = False
    safety: bool = False
    longer: bool = False
    kl: float = 0.0
    frozen_safety_layers: bool = False
    after: Literal["", "safe_lora", "resta", "resta_d"] = ""
    trained: bool = True

    def steps(self, standard: int) -> int:
        """Optimizer steps where plain fine-tuning takes `standard`."""
        return standard + (standard // WARMUP_SHARE if self.warmup or self.longer else 0)

    def config(self, standard: int, steps_per_epoch: int) -> ProConConfig:
        """Settings of the projection term; z_0 is kept from a pre-pass in float32."""
        if not self.warmup:
            return ProConConfig(alpha=self.alpha, layers=self.layers, reference="cache")
        epochs = (standard // WARMUP_SHARE) / steps_per_epoch
        return ProConConfig(
            alpha=self.alpha, layers=self.layers, reference="cache", schedule="warmup", warmup_epochs=epochs
        )


MAIN = {
    "aligned": Arm(trained=False),
    "sft": Arm(),
    "procon_wu": Arm(alpha=STRONG, warmup=True),
    "procon_s": Arm(alpha=LIGHT),
    "sft_safe": Arm(safety=True),
    "last_layer": Arm(alpha=LIGHT, layers=(-1,)),
    "random_direction": Arm(alpha=STRONG, warmup=True, random_direction=True),
}
"""Those that the claims are about, at every scale."""

MORE = {
    "procon_s_0.1": Arm(alpha=0.1),
    "procon_s_1": Arm(alpha=1.0),
    "random_s": Arm(alpha=LIGHT, random_direction=True),
    "procon_s_safe": Arm(alpha=LIGHT, safety=True),
    "procon_wu_safe": Arm(alpha=STRONG, warmup=True, safety=True),
    "sft_long": Arm(longer=True),
    "kl": Arm(kl=1.0),
    "sppft": Arm(frozen_safety_layers=True),
    "safe_lora": Arm(after="safe_lora"),
    "resta": Arm(after="resta"),
    "resta_d": Arm(after="resta_d"),
}
"""The sweep of α, the other variants and the other baselines, which scale `full` alone measures."""

ARMS = {**MAIN, **MORE}
