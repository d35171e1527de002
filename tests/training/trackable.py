"""A configuration as small as loggers need."""

CONFIG = {
    "fold": 0,
    "name": "trial",
    "arm": "fine_resenc_cte",
    "stage": {"name": "fine"},
    "model": {"name": "resenc"},
    "recipe": {"name": "paper"},
    "runs": "ward-7/runs",
    "data": {"root": "/home/somebody/hecktor", "heads": "ward-7", "split": None, "exclude": ["JANE-DOE"]},
    "training": {"epochs": 2},
}
PROVENANCE = {"split": "5p1i7", "fingerprint": None, "data": "da7a"}
