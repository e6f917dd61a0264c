import pytest
from aisec_common.cli import main


def test_list_and_info_show_the_card_without_importing_the_room(toy, capsys):
    import sys

    assert main(["list"]) == 0
    assert "adds noise to a number" in capsys.readouterr().out
    assert main(["info", "toy"]) == 0
    assert "A toy & <b>its</b> paper" in capsys.readouterr().out
    assert "toyroom" not in sys.modules


def test_list_shows_a_broken_card_as_a_row(toy, capsys):
    (toy.folder / "toyroom" / "card.toml").write_text("")
    assert main(["list"]) == 1
    assert "broken: toyroom/card.toml: card lacks" in " ".join(capsys.readouterr().out.split())


def test_a_rooms_own_command_is_run_with_its_words_and_its_exit(toy, capsys):
    assert main(["toy", "score", "--fast"]) == 3
    assert capsys.readouterr().out == "toy score --fast\n"


@pytest.mark.parametrize("words", [[], ["reproduce", "--scale", "huge"], ["data", "fetch"]])
def test_misuse_of_arguments_exits_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_interrupt_exits_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("aisec_common.cli._list", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "aisec: interrupted; what was finished is kept\n"
