import torch
from aisec_common.testing import RoomContract

from procon import ProConConfig, RefusalDirections, projection_term, refusal_directions
from procon.behaviour import log_odds
from procon.hf_flagged_lm import Language

Z = torch.zeros(1, 2, 3)
MASK = torch.ones(1, 2, dtype=torch.bool)


def directions(**changes):
    return RefusalDirections(
        **{"vectors": torch.eye(2), "layers": (0, 1), "model_name": "", "model_hash": "", **changes}
    )


class TestContract(RoomContract):
    room = "procon"
    wrong_inputs = (
        (lambda: ProConConfig(alpha=-1.0), "alpha"),
        (lambda: ProConConfig(alpha=torch.ones(1)), "alpha"),
        (lambda: ProConConfig(schedule="nosuch"), "schedule"),
        (lambda: ProConConfig(schedule=lambda progress: 1.0), "schedule"),
        (lambda: ProConConfig(norm="nosuch"), "norm"),
        (lambda: ProConConfig(reduction="nosuch"), "reduction"),
        (lambda: ProConConfig(reference="nosuch"), "reference"),
        (lambda: ProConConfig(layers=()), "layers"),
        (lambda: directions(vectors=2 * torch.eye(2)), "re-normalise"),
        (lambda: directions(layers=(0,)), "vectors"),
        (lambda: directions().at((5,)), "layers"),
        (lambda: RefusalDirections.load("nosuch.safetensors"), "nosuch.safetensors"),
        (lambda: projection_term(Z, Z[..., :2], MASK), "z_0"),
        (lambda: projection_term(Z, Z, MASK.long()), "mask"),
        (lambda: projection_term(Z, Z, MASK, norm="nosuch"), "norm"),
        (lambda: refusal_directions(None, None, harmful=[], harmless=["a"]), "harmful"),
        (lambda: log_odds(Z, []), "tokens"),
        (lambda: Language(words=0), "words"),
    )
