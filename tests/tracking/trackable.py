"""A configuration as small as loggers need."""

CONFIG = {
    "fold": 0,
    "name": "trial",
    "arm": "fine_resenc_cte",
    "stage": {"name": "fine"},
    "model": {"name": "resenc"},
    "recipe": {"name": "paper"},
    "data": {"root": "/home/somebody/hecktor", "split": None, "exclude": ["JANE-DOE"]},
    "training": {"epochs": 2},
}
PROVENANCE = {"split": "5p1i7", "fingerprint": None, "data": "da7a"}
