from gfmextract import defenses
from gfmextract.choices import DEFENSES, SCENARIOS


def test_six_scenarios_and_every_defence_by_name():
    assert len(SCENARIOS) == len(set(SCENARIOS)) == 6
    assert len(DEFENSES) == len(set(DEFENSES)) == 8
    words = {name.split("-")[-1] for name in DEFENSES} | {"label"}
    assert {name.lower() for name in ("Noise", "Quantize", "Project", "Budget", "Watermark")} <= words
    assert all(hasattr(defenses, name) for name in ("Noise", "Quantize", "Project", "LabelOnly", "Budget", "Watermark"))
