from pathlib import Path

import pytest
import torch
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.trained import trained_file

from impq.corpus import python_documentation
from impq.hf_embedded import FACTS, LAYERS, SYMBOLS, UNSCORED, WINDOW, lookup_task, text_task


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def text(cache):
    return text_task(0, steps=3)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def ids_of(parts):
    return torch.cat([part.inputs["input_ids"] for part in parts])


class TestText:
    def test_model_and_tokens(self, text):
        assert (text.name, len(text.model.model.layers)) == ("text", LAYERS)
        assert sum(p.numel() for p in text.model.parameters()) == pytest.approx(985_000, rel=0.01)
        assert ids_of(text.calibration).shape == (16, WINDOW)
        assert ids_of(text.held_out).shape == (32, WINDOW)
        assert len(ids_of(text.calibration_long)) > 4 * 16
        assert not text.model.training

    def test_windows_are_different_and_from_their_part(self, text):
        rows = {part: {tuple(row) for row in ids_of(getattr(text, part)).tolist()} for part in (
            "calibration", "calibration_long", "held_out"
        )}  # fmt: skip
        assert (len(rows["calibration"]), len(rows["held_out"])) == (16, 32)
        assert rows["calibration"] < rows["calibration_long"]
        assert not rows["held_out"] & rows["calibration_long"]

    def test_a_second_call_trains_nothing(self, cache, text):
        told = []
        again = text_task(0, steps=3, progress=lambda *now: told.append(now))
        assert told == []
        assert model_hash(again.model) == model_hash(text.model)
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(again.calibration, text.calibration, strict=True))

    def test_training_text_is_the_training_part_alone(self, monkeypatch, cache, text):
        """Other calibration and test pages train the same weights."""
        parts = python_documentation()
        swapped = {**parts, "calibration": parts["test"], "test": parts["calibration"]}
        monkeypatch.setattr("impq.hf_embedded.python_documentation", lambda: swapped)
        before = files(cache)
        told = []
        other = text_task(0, steps=3, progress=lambda *now: told.append(now))
        assert told == [(1, 3), (2, 3), (3, 3)]
        assert len(files(cache)) == len(before) + 1  # the hash of the data is part of the recipe
        assert model_hash(other.model) == model_hash(text.model)


class TestLookup:
    def test_sequences_are_facts_of_one_table(self, cache):
        task = lookup_task(0, steps=2, answers=400)
        seen = {}
        for parts, rows in ((task.calibration, 40), (task.calibration_long, 320), (task.held_out, 40)):
            facts = ids_of(parts).view(-1, FACTS, 3)
            assert len(facts) == rows
            labels = torch.cat([part.labels for part in parts]).view(-1, FACTS, 3)
            assert (labels[..., :2] == UNSCORED).all()
            assert torch.equal(labels[..., 2], facts[..., 2])
            for a, b, answer in facts.view(-1, 3).tolist():
                assert 0 <= a < SYMBOLS <= b < 2 * SYMBOLS <= answer < 3 * SYMBOLS
                assert seen.setdefault((a, b), answer) == answer
        assert len(seen) > 0.9 * SYMBOLS**2
        assert not torch.equal(ids_of(task.calibration), ids_of(task.held_out))

    def test_kept_by_recipe(self, cache):
        told = []

        def progress(*now):
            told.append(now)

        one, same = (lookup_task(3, steps=2, answers=20, progress=progress) for _ in range(2))
        assert told == [(1, 2), (2, 2)]
        assert model_hash(one.model) == model_hash(same.model)
        other = lookup_task(4, steps=1, answers=20)
        assert model_hash(other.model) != model_hash(one.model)
        assert not torch.equal(ids_of(other.calibration), ids_of(one.calibration))
        assert all(trained_file("x", {}).parent == file.parent for file in files(cache))

    def test_more_training_is_better_on_fresh_answers(self, cache):
        def loss(steps):
            part = (task := lookup_task(0, steps=steps, answers=200)).held_out[0]
            with torch.no_grad():
                return task.model(input_ids=part.inputs["input_ids"], labels=part.labels).loss.item()

        assert loss(10) < loss(2) - 0.1
