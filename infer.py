"""Segment a case list with a bundle of trained members.

    python infer.py cases=PATH bundle=DIR out=DIR

Writes OUT/CASE.nii.gz (uint8: 0 background, 1 GTVp, 2 GTVn) on each CT's grid, OUT/cases.csv and
OUT/lesions.csv. The same command again goes on where it was stopped, and skips what it has finished.
A case that cannot be segmented is reported and the others still finish; the exit status is then 1.
"""

from hnseg.app import run
from hnseg.cli.infer import main

if __name__ == "__main__":
    run(main, config_name="infer")
