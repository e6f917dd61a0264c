import subprocess
import sys

import pytest
from aisec_common import card
from aisec_common.card import read_card

from tests.conftest import CARD


def write(tmp_path, text):
    path = tmp_path / "card.toml"
    path.write_text(text)
    return path


def test_a_valid_card_is_read(tmp_path):
    read = read_card(write(tmp_path, CARD))
    assert read.paper.authors == ["A. Author", "B. Author"]
    assert read.evidence[0].level == "design"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('arxiv = "0000.00000"\n', "", "paper lacks arxiv"),
        ('arxiv = "0000.00000"', 'arxiv = ""', "paper.arxiv must be a text"),
        ('arxiv = "0000.00000"', "arxiv = 3", "paper.arxiv must be a text"),
        ('helps = ["always"]', 'helps = "always"', "use.helps must be a list"),
        ('helps = ["always"]', "helps = []", "use.helps must be a list"),
        ('misuse = "none"', 'misuse = "none"\nmisuses = "x"', "unknown key misuses"),
        ('level = "design"', 'level = "guess"', "evidence.level 'guess' is not one of"),
        ("[[claimed]]", "[claimed]", "claimed must be an array"),
        ("[use]", "[use", "Expected"),
    ],
)
def test_a_card_that_is_not_valid_is_one_line(tmp_path, old, new, words):
    with pytest.raises(ValueError, match=r"card\.toml: ") as caught:
        read_card(write(tmp_path, CARD.replace(old, new)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_release_session_can_ask(tmp_path):
    for text, code in ((CARD, 0), ("", 1)):
        words = [sys.executable, "-I", "-S", card.__file__, write(tmp_path, text)]
        assert subprocess.run(words, capture_output=True).returncode == code


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_card(tmp_path / "card.toml")
