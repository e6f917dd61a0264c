from refusal_index.capitals import ALSO, capitals
from refusal_index.graders import aliases, exact_match


def test_246_questions_with_population():
    asked, population = capitals()
    assert len(asked.ids) == len(set(asked.ids)) == len(set(asked.questions)) == len(population) == 246
    assert max(population) > 10**9
    by_id = dict(zip(asked.ids, asked.golds, strict=True))
    assert set(ALSO) <= set(by_id)
    assert by_id["FR"] == "Paris"
    assert exact_match(["q"] * 2, [by_id["US"], by_id["UA"]], ["Washington DC", "Kiev"]) == ["CORRECT", "CORRECT"]


def test_texts_are_tidy_and_aliases_add_something():
    asked, _ = capitals()
    for question, gold in zip(asked.questions, asked.golds, strict=True):
        assert "  " not in question
        assert " ?" not in question
        names = aliases(gold)
        assert all(name == name.strip() for name in names)
        assert len(names) == len({name.casefold() for name in names})
