import numpy as np
from aisec_common.testing import RoomContract

from refusal_index import RefusalReport, TwoPassRunner, compare, from_rates, iso_curve, read_results, refusal_index


class TestContract(RoomContract):
    room = "refusal-index"
    wrong_inputs = (
        (lambda: refusal_index([1, 0], [1, 0, 1]), "refused"),
        (lambda: refusal_index([1, np.nan], [1, 0]), "refused"),
        (lambda: refusal_index([], []), "refused"),
        (lambda: refusal_index(counts=(1, -1, 1, 1)), "counts"),
        (lambda: refusal_index(), "refused"),
        (lambda: from_rates(0.5, 0.4, 0.3, 100), "forced_accuracy"),
        (lambda: iso_curve(1.2, 0.5, [0.1]), "mu"),
        (lambda: TwoPassRunner(generate=list, prompts=["nosuch"]), "prompts"),
        (lambda: RefusalReport(table=[{"question_id": 1, "prompt": "p", "pass": 1, "label": "MAYBE"}]), "MAYBE"),
        (
            lambda: RefusalReport(table=[{"question_id": "q7", "prompt": "p", "pass": 1, "label": "NOT_ATTEMPTED"}]),
            "q7",
        ),
        (lambda: compare({}), "reports"),
        (lambda: read_results([]), "paths"),
        (lambda: read_results(["nosuch.csv"]), "nosuch.csv"),
    )
