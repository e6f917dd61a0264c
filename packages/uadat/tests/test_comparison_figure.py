import pytest
import torch

from uadat import robust_report
from uadat.comparison_figure import figure
from uadat.network import small_resnet


@pytest.fixture(scope="module")
def comparison():
    images, labels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    one, two = (
        robust_report(small_resnet(10, seed=seed), (images, labels), [0.05, 0.1], attacks="quick") for seed in (0, 1)
    )
    return one.compare({"two": two}, name="one")


def test_a_bar_for_every_model_and_attack_is_as_high_as_its_accuracy(comparison):
    panels = figure(comparison).axes
    assert len(panels) == 2
    rows = [label.get_text() for label in panels[0].get_xticklabels()]
    assert rows == ["clean", "PGD-20", "APGD-CE", "APGD-T", "noise", "worst case"]
    for eps, axes in zip((0.05, 0.1), panels, strict=True):
        for bars, report in zip(axes.containers[1::2], comparison.reports.values(), strict=True):
            assert [bar.get_height() for bar in bars] == [report.accuracy(row, eps) for row in rows]
