import numpy as np
import torch
from aisec_common.testing import RoomContract

from icfnet import Cohort, ICFNetConfig, ICFNetSurvival, evaluate, load_mcat_cohort, synthetic_cohort
from icfnet.arms import make_arm
from icfnet.bins import TimeBins
from icfnet.clinical_text import ClinicalFacts
from icfnet.jobs import CohortJob

GENES = {"Oncogenes": torch.ones(3, 2)}
SMALL = {"width": 8, "heads": 2, "epochs": 1, "n_bins": 2}


def cohort(**changes):
    given = {"ids": ("A", "B", "C"), "time": [1.0, 2.0, 3.0], "event": [1, 1, 0], "genes": GENES}
    return Cohort(**(given | changes))


def fitted():
    return ICFNetSurvival(modalities=("genes",), **SMALL).fit(cohort())


class TestContract(RoomContract):
    room = "icfnet"
    wrong_inputs = (
        # row 11 of the acceptance table
        (lambda: ICFNetSurvival(**SMALL).fit(cohort(event=[0, 0, 0])), "no patient has an event"),
        (lambda: ICFNetSurvival(**SMALL | {"n_bins": 4}).fit(cohort()), "n_bins=4"),
        (lambda: cohort(time=[1.0, -2.0, 3.0]), "time of patient 'B'"),
        (lambda: cohort(bags=(None, torch.ones(0, 4), None)), "patient 'B' has 0 patches"),
        (lambda: fitted().predict(cohort(genes={"Nosuch": torch.ones(3, 2)})), "unknown group 'Nosuch'"),
        (lambda: cohort(genes={"Oncogenes": torch.tensor([[1.0], [np.nan], [1.0]])}), "patient 'B' are not finite"),
        (lambda: ICFNetSurvival(**SMALL).fit(cohort(genes=None)), "no patient of the cohort has any"),
        (lambda: fitted().predict(cohort(genes_present=[1, 0, 1])), "patient 'B' has none"),
        # the rest
        (lambda: cohort(ids=("A", "A", "C")), "ids must be distinct"),
        (lambda: cohort().split(3), "fold must be one of"),
        (lambda: ICFNetSurvival().fit([1, 2]), "X must be"),
        (lambda: ICFNetConfig(modalities=("nosuch",)), "modalities must be of"),
        (lambda: ICFNetConfig(loss="cox"), "loss must be one of"),
        (lambda: TimeBins(edges=(3, 2, 1)), "increasing"),
        (lambda: ClinicalFacts(age=-3), "age"),
        (lambda: evaluate(fitted(), cohort(event=[0, 0, 0]), train=cohort()), "at least one event"),
        (lambda: load_mcat_cohort("nosuch.csv", signatures="nosuch.csv"), "there is no file"),
        (lambda: make_arm("nosuch", fitted()), "arm must be one of"),
        (lambda: synthetic_cohort(0, patients=3, training=3), "training"),
        (lambda: CohortJob(csv="a.csv", signatures="b.csv", fold=1), "belong together"),
    )
