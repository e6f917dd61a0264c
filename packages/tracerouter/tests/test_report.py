from dataclasses import replace

import pytest
import torch

from tracerouter.hf_router import TraceRouter
from tracerouter.report import path_figure


def test_every_cut_unit_is_a_dot_sized_by_its_share(trace):
    figure = path_figure(trace)
    (axes,) = figure.axes  # the onset was given: there is no curve
    dots = {d.get_label(): d for d in axes.collections if d.get_label() in trace.sites}
    for site, drawn in dots.items():
        units = [units for key, units in trace.path.items() if key[1] == site]
        assert len(drawn.get_offsets()) == sum(map(len, units))
    key = (trace.onset, "attn_out")
    score = trace.score(key).clamp(min=0)
    share = (score[trace.path[key][0]] / score.sum()).item()
    assert dots["attn_out"].get_sizes()[0] == pytest.approx(10 + 400 * share)


def test_curve_edges_and_words_for_what_is_not_drawn(model, tokenizer, pairs, trace, tmp_path):
    router = TraceRouter(model, tokenizer, sites=trace.sites, onset=1, batch_size=6)
    edges = router.edges(trace, pairs[:6])
    more = replace(trace, onset_curve=(0.1, 0.4, 0.2, 0.1))
    more = more.with_path({**trace.path, (3, "mlp_out"): torch.arange(20)})
    figure = path_figure(more, edges)
    above, below = figure.axes
    assert list(above.lines[0].get_ydata()) == [0.1, 0.4, 0.2, 0.1]
    assert len(below.lines) > 10
    assert "+8" in [text.get_text() for text in below.texts]
    figure.savefig(tmp_path / "path.png")
