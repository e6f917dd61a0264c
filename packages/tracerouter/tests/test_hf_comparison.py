import json

import pytest
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import bpe_tokenizer
from aisec_common.torch.peft_taught_refusal import country_questions, weather_questions

from tracerouter import hf_comparison
from tracerouter.hf_comparison import SETTINGS, Place, compare
from tracerouter.hf_router import TraceRouter

TEMPLATE = "{% for m in messages %}Q: {{ m.content }}{% endfor %}{% if add_generation_prompt %} A:{% endif %}"
RESID = Place(sites=("resid",), budgets=(3,))

pytestmark = pytest.mark.filterwarnings("ignore:no local peak", "ignore:.*length alone moves this score")


@pytest.fixture(autouse=True, scope="module")
def small():
    """A random model in the place of the taught one, and few prompts; gives the seeds it was asked for."""
    texts = [question.text for question in (*weather_questions("train")[:50], *country_questions("train")[:50])]
    tokenizer = bpe_tokenizer(texts, 400)
    tokenizer.chat_template = TEMPLATE
    asked = []

    def untaught(seed, *, device, progress):
        asked.append(seed)
        progress(1, 1)
        return tiny_lm(tokenizer, layers=3, width=16, heads=2, context=512, seed=seed).to(device), tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_comparison, "taught_refusal", untaught)
        for name, value in (("PAIRS", 8), ("TESTS", 4), ("PAGES", 2), ("CHARACTERS", 80)):
            patch.setattr(hf_comparison, name, value)
        yield asked


@pytest.fixture(scope="module")
def found(tmp_path_factory, small):
    folder, shown = tmp_path_factory.mktemp("comparison"), []
    records = compare(folder, seeds=1, places=[RESID], show=lambda *said: shown.append(said))
    return folder, records, shown


def test_every_setting_leaves_one_whole_record(found):
    folder, records, shown = found
    assert [record["settings"]["setting"] for record in records] == ["none", *SETTINGS]
    about = {"model": "smollm2-135m-instruct", "pairs": 8, "tests": 4, "width": 4, "seed": 0}
    assert records[1]["settings"] == about | {"sites": "resid", "budget": 3, "setting": "path"}
    assert set(records[0]) == {"settings", "asr", "utility", "over_refusal", "perplexity", "attacked", "served"}
    for record in records[1:]:
        assert set(record) == {*records[0], "onset", "onset_curve", "units"}
        assert len(record["attacked"]) == len(record["served"]) == 4
        assert record["asr"] == sum(record["attacked"]) / 4
        assert len(record["onset_curve"]) == 3
    names = {"0-none.json", *(f"0-resid-3-{setting}.json" for setting in SETTINGS)}
    assert {file.name for file in (folder / "runs").iterdir()} == names
    assert json.loads((folder / "runs" / "0-resid-3-path.json").read_text()) == records[1]
    assert shown[0] == ("teaching, seed 0", 1, 1)
    assert shown[-1] == ("resid, seed 0: cutting", 7, 7)


def test_cuts_differ_and_none_takes_more_units_than_the_path(found):
    units = {record["settings"]["setting"]: record.get("units", 0) for record in found[1]}
    assert 0 < max(units.values()) == units["path"]
    assert units["source"] + units["path_only"] == units["path"]
    assert len({record["perplexity"] for record in found[1]}) > 3


def test_what_is_on_disk_is_not_repeated(found, small, monkeypatch):
    folder, records, _ = found
    monkeypatch.setattr(TraceRouter, "fit", lambda *_: pytest.fail("traced again"))
    missing = folder / "runs" / "0-resid-3-local.json"
    missing.unlink()
    judged, once = [], hf_comparison.evaluate

    def counted(*arguments, **named):
        judged.append(1)
        return once(*arguments, **named)

    monkeypatch.setattr(hf_comparison, "evaluate", counted)
    assert compare(folder, seeds=1, places=[RESID]) == records, "a trace that was read again cuts alike"
    assert len(judged) == 1
    assert missing.is_file()
    assert set(small) == {0}


def test_a_finished_place_is_not_traced_again(found, monkeypatch):
    folder, records, _ = found
    monkeypatch.setattr(TraceRouter, "fit", lambda *_: pytest.fail("traced again"))
    monkeypatch.setattr(TraceRouter, "load", lambda *_: pytest.fail("read again"))
    assert compare(folder, seeds=1, places=[RESID]) == records


def test_a_record_of_other_settings_is_measured_anew(found, monkeypatch):
    folder, records, _ = found
    monkeypatch.setattr(hf_comparison, "TESTS", 3)
    (again, *_) = compare(folder, seeds=1, places=[])
    assert (again["settings"]["tests"], len(again["served"])) == (3, 3)
    assert again["settings"] != records[0]["settings"]
