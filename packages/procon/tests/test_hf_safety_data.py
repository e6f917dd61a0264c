import pytest
from datasets import Dataset

from procon.hf_safety_data import mixed


def test_all_rows_are_there_and_the_order_depends_on_the_seed():
    task, safety = Dataset.from_dict({"text": [f"t{i}" for i in range(50)]}), Dataset.from_dict({"text": ["s0", "s1"]})
    first = mixed(task, safety, seed=0)["text"][:]
    assert sorted(first) == sorted([*task["text"], *safety["text"]])
    assert first == mixed(task, safety, seed=0)["text"][:] != mixed(task, safety, seed=1)["text"][:]
    assert first[-2:] != ["s0", "s1"]


@pytest.mark.parametrize(
    ("safety", "error", "message"),
    [
        (Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}), ValueError, "columns of train_dataset, text,"),
        (Dataset.from_dict({"text": [1]}), ValueError, "safety_dataset"),
        ([{"text": "a"}], TypeError, "safety_dataset must be a datasets.Dataset"),
        (Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), TypeError, "safety_dataset"),
    ],
)
def test_what_does_not_fit_is_refused(safety, error, message):
    with pytest.raises(error, match=message) as raised:
        mixed(Dataset.from_dict({"text": ["a"]}), safety, seed=0)
    assert "\n" not in str(raised.value)
