import re
from html.parser import HTMLParser

from aisec_common.report import RoomResult, claims_figure, html
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.verdict import judge
from matplotlib.figure import Figure


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def result(tmp_path):
    (room,) = choose_rooms(["toy"])
    run(plan({room: room.load()}, tmp_path, "quick")[0])
    records = read_records(tmp_path, "toy")
    study = room.load()
    judgements = judge(study, outcomes_of(records))
    return RoomResult(name="toy", title=room.card().paper.title, study=study, judgements=judgements, records=records)


def test_the_report_is_one_page_figures_first_and_escaped(toy, tmp_path):
    text = html([result(tmp_path), RoomResult(name="<x>", broken="no <module>")])
    tags = Tags(text)
    assert not tags.open
    names = [name for name, _ in tags.tags]
    assert names.index("img") < names.index("table")
    assert names.count("img") == 2
    assert all(a["src"].startswith("data:image/png;base64,") for n, a in tags.tags if n == "img")
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags.tags
    for raw, escaped in (
        ("<b>its</b>", "&lt;b&gt;its"),
        ("<beats>", "&lt;beats&gt;"),
        ("no <module>", "no &lt;module"),
    ):
        assert raw not in text
        assert escaped in text


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(toy, tmp_path):
    made = result(tmp_path)

    def no_luck(outcomes):
        raise RuntimeError("<planted>")

    def no_text(outcomes):
        figure = Figure()
        figure.suptitle(r"$\nosuch{x}$")
        return figure

    object.__setattr__(made.study, "figures", (no_luck, no_text))
    text = html([made])
    assert "no luck could not be drawn: RuntimeError: &lt;planted&gt;" in text
    assert "no text could not be drawn" in text
    assert "<table>" in text


def test_the_claims_figure_has_a_line_a_claim(toy, tmp_path):
    figure = claims_figure(result(tmp_path).judgements)
    assert len(figure.axes) == 1  # the skipped claim has nothing to draw
