from __future__ import annotations

import json

import pytest
from aisec_common.torch.robustness.sample_log import Batch, Sample, SampleLog

CONFIG = {"seed": 0, "eps": (0.1, 1 / 3)}


def batch(number: int) -> Batch:
    samples = (
        Sample(id=f"{number}", right=True, mean=1 / 3, distance=0.1),
        Sample(id="é", right=False, mean=0, distance=0),
    )
    return Batch(samples=samples, forwards=10 + number, backwards=number)


def filled(folder, count: int = 3) -> SampleLog:
    log = SampleLog(folder, CONFIG)
    for number in range(count):
        log.add(("PGD", 1 / 3, number), batch(number))
    return log


def test_comes_back_as_it_was(tmp_path):
    log = filled(tmp_path)
    assert SampleLog(tmp_path, CONFIG).batches == log.batches


def test_every_cut_keeps_whole_batches_and_ends_in_the_same_file(tmp_path):
    filled(tmp_path)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        log = SampleLog(tmp_path, CONFIG)
        kept = len(log.batches)
        assert kept == whole[:cut].count(b'"batch"') - (1 if b'"batch"' in whole[:cut].split(b"\n")[-1] else 0)
        for number in range(kept, 3):
            log.add(("PGD", 1 / 3, number), batch(number))
        assert path.read_bytes() == whole


def test_without_a_folder_nothing_is_written(tmp_path):
    assert filled(None).batches
    assert not list(tmp_path.iterdir())


def test_another_configuration_is_refused_by_name(tmp_path):
    filled(tmp_path)
    with pytest.raises(ValueError, match="other seed, torch; choose another folder"):
        SampleLog(tmp_path, {**CONFIG, "seed": 1, "torch": "3"})


@pytest.mark.parametrize("text", ["[1]\n", "{}\n", "not json\n", json.dumps({"config": None}) + "\n"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "samples.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"folder: .* was not written by a report"):
        SampleLog(tmp_path, CONFIG)
    assert (tmp_path / "samples.jsonl").read_text() == text
