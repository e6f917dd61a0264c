from pathlib import Path

import pytest

from refusal_index.config import CompareConfig, RunConfig, ScoreConfig

RUN = {"model": "m", "questions": "capitals", "out": Path("o")}


@pytest.mark.parametrize(
    "bad",
    [{"batch_size": 0}, {"max_new_tokens": 0}, {"limit": 0}, {"temperature": -0.1}, {"top_p": 1.1}, {"top_p": 0.0}],
)
def test_names_the_option_out_of_range(bad):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be"):
        RunConfig(**RUN, **bad)
    with pytest.raises(ValueError, match="at least two"):
        CompareConfig(folders=(Path("a"),))
    with pytest.raises(ValueError, match="at least one"):
        ScoreConfig(results=())


def test_conditions_are_what_an_answer_depends_on():
    base = RunConfig(**RUN).conditions()
    for change in ({"temperature": 0.0}, {"max_new_tokens": 32}, {"seed": 1}, {"chat": False}, {"dtype": "float16"}):
        assert RunConfig(**RUN, **change).conditions() != base
    for change in ({"batch_size": 2}, {"device": "cuda"}, {"limit": 3}, {"prompts": ("refuse-0",)}):
        assert RunConfig(**RUN, **change).conditions() == base
    greedy = RunConfig(**RUN, temperature=0.0)
    assert greedy.conditions() == RunConfig(**RUN, temperature=0.0, seed=5).conditions()


def test_a_run_has_a_folder_of_its_own_by_default(tmp_path):
    assert RunConfig(**RUN).folder == Path("o")
    free = RunConfig(model="org/name", questions="x/mine.csv")
    assert free.folder == Path("refusal-index-results/org-name-mine")
    (tmp_path / "local").mkdir()
    assert RunConfig(model=str(tmp_path / "local"), questions="capitals").folder.name == "local-capitals"
