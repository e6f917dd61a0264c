import statistics

import pytest
from aisec_common.readme import refresh, room_of
from aisec_common.result import read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.table import number


@pytest.fixture
def readme(toy, tmp_path):
    (room,) = choose_rooms(["toy"])
    run(plan({room: room.load()}, tmp_path / "their-toys" / "records", "quick")[0])
    (tmp_path / "their-toys" / "t.csv").write_text("n,ratio\n10,3\n")
    (tmp_path / "their-toys" / "t.json").write_text('{"rows": [{"size": 7, "ratio": 123.456}]}')
    path = tmp_path / "their-toys" / "README.md"
    path.write_text(
        "head\n<!-- aisec:card -->\nstale line\n<!-- /aisec:card -->\nmiddle\n"
        "<!-- aisec:results records -->\n<!-- /aisec:results -->\n<!-- aisec:table t.csv -->\n<!-- /aisec:table -->\n"
        "<!-- aisec:table t.json -->\n<!-- /aisec:table -->\n"
        "<!-- aisec:arms records value -->\n<!-- /aisec:arms -->\n"
    )
    return path


def test_blocks_are_made_anew_and_the_rest_stays(readme):
    text = refresh(readme, choose_rooms(["toy"])[0])
    assert text.startswith("head\n<!-- aisec:card -->\n**A toy")
    assert "stale line" not in text
    assert "\nmiddle\n" in text
    assert "| method <beats> baseline |" in text
    assert "Scale quick, 3 seeds" in text
    assert "| 10 | 3 |" in text
    assert "| 7 | 123 |" in text
    values = [arms["method"][0].metrics["value"] for arms in read_records(readme.parent / "records", "toy").values()]
    assert f"| method | 3 | {number(statistics.mean(values))} ± {number(statistics.stdev(values))} |" in text
    readme.write_text(text)
    assert refresh(readme, choose_rooms(["toy"])[0]) == text


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("what x", "unknown block"),
        ("results elsewhere", "holds no record"),
        ("arms elsewhere value", "holds no record"),
        ("table gone.csv", "holds no table"),
    ],
)
def test_blocks_that_cannot_be_made_say_so(readme, block, words):
    kind = block.split()[0]
    readme.write_text(f"<!-- aisec:{block} -->\n<!-- /aisec:{kind} -->\n")
    with pytest.raises(ValueError, match=words):
        refresh(readme, choose_rooms(["toy"])[0])


@pytest.mark.parametrize("end", ["", "<!-- /aisec:cards -->"])
def test_a_block_that_is_not_closed_says_so(readme, end):
    readme.write_text(f"<!-- aisec:card -->\nstale\n{end}\n")
    with pytest.raises(ValueError, match="not closed"):
        refresh(readme, choose_rooms(["toy"])[0])


def test_a_rooms_block_needs_a_room(readme):
    with pytest.raises(ValueError, match="belongs into the README of a room"):
        refresh(readme, None)


def test_the_room_of_a_readme_is_found_by_its_folder(readme, tmp_path):
    assert room_of(tmp_path / "README.md") is None
    assert room_of(readme).name == "toy"
