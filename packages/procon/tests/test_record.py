import pytest
import torch

from procon.direction import RefusalDirections
from procon.record import RECORD, check_record, digest, write_record


def test_a_record_is_checked_and_what_differs_is_named(tmp_path):
    record = {"alpha": 0.1, "layers": [0, 1], "scaled_by": None}
    write_record(tmp_path, record)
    check_record(tmp_path, record, "--resume")
    with pytest.raises(ValueError, match=r"^--resume: .* another alpha, layers;"):
        check_record(tmp_path, {**record, "alpha": 0.2, "layers": "all"}, "--resume")
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"^--resume: .* has no procon\.json that says"):
        check_record(tmp_path, record, "--resume")


def test_the_digest_tells_vectors_and_layers_apart():
    whole = RefusalDirections(vectors=torch.eye(3), layers=(0, 1, 2), model_name="", model_hash="")
    turned = RefusalDirections(vectors=-torch.eye(3), layers=(0, 1, 2), model_name="other", model_hash="other")
    assert len({digest(whole), digest(turned), digest(whole.at((0, 2))), digest(whole.at((2, 0)))}) == 4
    assert digest(whole) == digest(RefusalDirections.at(whole, "all"))
