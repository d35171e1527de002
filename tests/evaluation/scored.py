"""Scored patients without masks."""

import numpy as np

from hnseg.evaluation.score import CaseScore
from hnseg.metrics.lesions import CONNECTIVITIES, MATCHINGS, Detections
from hnseg.metrics.official import CaseCounts, Overlap


def patient(case_id, gtvp=(80, 100, 100), gtvn=(60, 100, 100), lesions=(1, 0, 0)) -> CaseScore:
    """One patient; volumes of intersection, prediction and truth in mm³, lesions found, false and missed."""
    counts = CaseCounts(Overlap(*gtvp), Overlap(*gtvn), Detections(*lesions))
    detections = {(c, m): counts.lesions for c in CONNECTIVITIES for m in MATCHINGS}
    return CaseScore(case_id, case_id.split("-")[0], counts, detections, {})


def cohort(seed: int, patients: int) -> list[CaseScore]:
    """Patients A-000, A-001 and so on, whose tumours and nodes are found more or less well."""
    rng = np.random.default_rng(seed)

    def volumes():
        truth = rng.lognormal(8, 0.7)
        prediction = truth * rng.lognormal(0, 0.3)
        return rng.beta(6, 2) * min(truth, prediction), prediction, truth

    return [
        patient(f"A-{number:03}", volumes(), volumes(), (1 + rng.poisson(1), *rng.poisson((0.7, 0.7))))
        for number in range(patients)
    ]
