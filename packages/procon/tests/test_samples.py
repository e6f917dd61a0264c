import pytest
import torch
from tiny_training import packed, padded, rows

from procon.samples import Samples

LAYOUTS = {"right": padded, "left": lambda data: padded(data, "left"), "packed": packed}


def slow_positions(labels, tokens):
    """Positions of one sample that are held, told one by one."""
    response = [t for t, label in enumerate(labels) if label != -100 and t > 0]
    last = [t - 1 for t in response if t - 1 not in response]
    return sorted({"response": response, "prompt_last": last, "both": response + last}[tokens])


@pytest.mark.parametrize("tokens", ["response", "prompt_last", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constrained_tokens_counts_and_segments(tokens, layout):
    data = rows(20)
    samples = Samples.of(LAYOUTS[layout](data), tokens)
    expected = [(i, row["input_ids"][t]) for i, row in enumerate(data) for t in slow_positions(row["labels"], tokens)]
    held = samples.constrained
    assert samples.input_ids[held].tolist() == [token for _, token in expected]
    number, with_tokens = samples.counts()
    assert (int(number), int(with_tokens)) == (len(expected), len({i for i, _ in expected}))
    if layout == "packed":
        assert samples.segments[held].tolist() == [i for i, _ in expected]


def test_keys_tell_samples_apart_and_not_layouts():
    data = rows(20)
    found = [list(Samples.of(make(data), "response").keys(absolute=False)) for make in LAYOUTS.values()]
    assert found[0] == found[1] == found[2]
    assert len({key for key, _ in found[0]}) == len({(str(r["input_ids"]), str(r["labels"])) for r in data})
    assert sum(number for _, number in found[0]) == sum(label != -100 for row in data for label in row["labels"])
    left = [key for key, _ in Samples.of(padded(data, "left"), "response").keys(absolute=True)]
    right = [key for key, _ in Samples.of(padded(data), "response").keys(absolute=True)]
    longest = max(len(row["input_ids"]) for row in data)
    assert [a == b for a, b in zip(left, right, strict=True)] == [len(row["input_ids"]) == longest for row in data]


def test_a_sample_held_elsewhere_has_another_key():
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = [torch.tensor([[-100, *row]]) for row in ([-100, 7, 8], [-100, -100, 8], [6, 7, 8])]
    keys = [next(Samples.of({"input_ids": ids, "labels": label}, "response").keys(absolute=False)) for label in labels]
    assert len({key for key, _ in keys}) == 3


def test_several_turns_have_several_last_prompt_tokens():
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100, 7, -100]])
    samples = Samples.of({"input_ids": torch.arange(8)[None], "labels": labels}, "prompt_last")
    assert samples.constrained.nonzero()[:, 1].tolist() == [1, 5]


def test_labels_are_needed():
    with pytest.raises(ValueError, match="no labels"):
        Samples.of({"input_ids": torch.ones(1, 2)}, "response")
