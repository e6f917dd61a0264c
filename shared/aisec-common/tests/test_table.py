from aisec_common import Claim
from aisec_common.table import COLUMNS, markdown, plain, rows
from aisec_common.verdict import Judgement

CLAIM = Claim(text="a | b\nc", metric="m", arm="x", over="y", control="z", margin=0.3, paper=".5")
JUDGEMENT = Judgement(
    claim=CLAIM, verdict="holds", reason="r", n=8, effect=0.51234, low=0.4, high=0.6, level=0.975, control_effect=0.01
)


def test_a_row_says_paper_interval_level_margin_and_control():
    assert rows([JUDGEMENT]) == [
        ("a | b\nc", ".5", "0.512 [0.4, 0.6] at 97.5 %, wanted > 0.3", "0.01", "holds: r"),
    ]
    assert rows([Judgement(claim=CLAIM, verdict="skipped", reason="needs [hf]")])[0][2:4] == ("–", "–")


def test_markdown_escapes_what_would_break_the_table():
    text = markdown(COLUMNS, rows([JUDGEMENT]))
    assert len(text.splitlines()) == 3
    assert r"a \| b c" in text


def test_plain_wraps_to_the_terminal():
    text = plain(("a", "b"), [("word " * 30, "x")], width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("word") == 30
