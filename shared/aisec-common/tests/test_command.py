from dataclasses import dataclass

import pytest
from aisec_common.command import run_command


@dataclass(frozen=True, kw_only=True)
class Count:
    """Counts."""

    upto: int = 3

    def __post_init__(self) -> None:
        if self.upto < 1:
            raise ValueError(f"upto must be at least 1, not {self.upto}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores."""

    path: str


def raising(error):
    def work(config):
        raise error

    return work


def test_work_gets_the_parsed_config_and_gives_the_status(capsys):
    assert run_command("c", Count, lambda config: config.upto, ["--upto", "7"]) == 7
    assert run_command("c", Count, lambda config: None, []) == 0
    assert run_command("c", Count | Score, lambda config: print(config), ["score", "--path", "x"]) == 0
    assert "Score(path='x')" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upto", "0"], "upto must be at least 1, not 0"),
        (["--upto", "many"], "upto"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_misuse_is_one_line_and_2(capsys, words, message):
    assert run_command("c", Count, lambda config: 0, words) == 2
    error = capsys.readouterr().err
    assert "rror parsing Count" not in error
    assert error.startswith("c: ")
    assert message in error
    assert error.count("\n") == 1
    assert "│" not in error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("refused: give\nlabels"), 2, "c: refused: give labels\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.csv"),
            2,
            "c: [Errno 2] No such file or directory: 'x.csv'\n",
        ),
        (KeyboardInterrupt(), 130, "c: interrupted; what was finished is kept\n"),
    ],
)
def test_what_work_raises_is_one_line(capsys, error, status, line):
    assert run_command("c", Count, raising(error), []) == status
    assert capsys.readouterr().err == line


def test_an_absent_module_names_its_extra(capsys):
    absent = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    assert run_command("c", Count, raising(absent), [], needs={"torch": "hf"}) == 2
    assert capsys.readouterr().err == "c: needs torch.nn: pip install 'aisec-c[hf]'\n"
    with pytest.raises(ModuleNotFoundError):
        run_command("c", Count, raising(absent), [])


def test_help_is_not_an_error(capsys):
    assert run_command("c", Count, lambda config: 0, ["--help"]) == 0
    assert "--upto" in capsys.readouterr().out
