import sys

import pytest
from aisec_common.rooms import Room, choose_rooms, installed_rooms


def test_a_third_partys_room_joins_by_entry_point(toy):
    (room,) = choose_rooms(["toy"])
    assert (room.distribution, room.version) == ("their-toys", "1.2")
    assert room.card().paper.title == "A toy & <b>its</b> paper"
    assert room.console_script() == "toyroom.cli:main"
    assert "toyroom" not in sys.modules
    assert room.load().room == "toy"


def test_an_unknown_room_is_named_with_those_that_are_there(toy):
    with pytest.raises(ValueError, match=r"room 'toi' is not installed; installed: .*toy"):
        choose_rooms(["toi"])


def test_two_rooms_of_one_name_are_refused(toy, tmp_path):
    other = tmp_path / "other"
    (other / "src" / "otherroom").mkdir(parents=True)
    (other / "pyproject.toml").write_text(
        '[project]\nname = "other"\nversion = "1"\n[project.entry-points."aisec.studies"]\ntoy = "otherroom:S"\n'
    )
    toy.install(other)
    with pytest.raises(ValueError, match="room toy is declared by"):
        installed_rooms()


def test_what_is_no_study_is_refused(toy):
    with pytest.raises(TypeError, match="is not the Study of room 'toy'"):
        Room(name="toy", distribution="d", version="1", study="toyroom.cli:main").load()
    with pytest.raises(ValueError, match="not installed"):
        _ = Room(name="gone", distribution="d", version="1", study="no_such_package:S").package
