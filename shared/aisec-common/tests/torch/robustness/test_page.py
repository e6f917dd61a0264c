from __future__ import annotations

import re
from dataclasses import replace

import pytest
from aisec_common.torch.robustness import Flag

from tests.torch.robustness.test_result import report


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path):
    found = replace(report(flags=(Flag(code="F6", text="zero & more"),)), about={"model": "<b>"})
    text = found.save(tmp_path / "robust.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "data:image/png;base64," in text
    assert "F6: zero &amp; more" in text
    assert "model: &lt;b&gt;" in text
    assert text.count("<tr>") == 1 + 7


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path must end in"):
        report().save(tmp_path / "robust.pdf")
