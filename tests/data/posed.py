"""Phantoms in postures and scans that the cohort does not hold, with their true heads."""

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from hnseg.data.phantom.anatomy import Patient, build, chin_height, table
from hnseg.data.phantom.scanner import CENTRES, NAMES, UPRIGHT, head_mask, scan_ct
from hnseg.data.phantom.solids import ScanGrid


@dataclass(frozen=True)
class Scan:
    """A CT and the true head on its grid; `chin` is the patient's z of the chin in mm, the vertex about 0."""

    ct: sitk.Image
    head: sitk.Image
    chin: float

    def altered(self, change) -> "Scan":
        """An upright scan with `change(hu, z, y, x)` made to its array; coordinates are the patient's, mm."""
        hu = sitk.GetArrayFromImage(self.ct)
        (ox, oy, oz), (dx, dy, dz) = self.ct.GetOrigin(), self.ct.GetSpacing()
        nz, ny, nx = hu.shape
        z, y, x = np.ogrid[oz : oz + dz * (nz - 0.5) : dz, oy : oy + dy * (ny - 0.5) : dy, :nx]
        change(hu, z, y, ox + dx * x)
        ct = sitk.GetImageFromArray(hu)
        ct.CopyInformation(self.ct)
        return replace(self, ct=ct)


def posed(
    angles=(0.0, 0.0, 0.0),
    offset=(0.0, 0.0, 0.0),
    *,
    top=15.0,
    bottom=-440.0,
    spacing=(3.0, 3.0, 3.5),
    direction=UPRIGHT,
) -> Scan:
    """An adult of mean size whose head nods, tilts and turns by `angles` (radians) in an scan.

    Args:
        angles: About x (nod), y (tilt) and z (turn).
        offset: Of the patient from the middle of the couch, mm.
        top: Where the scan ends above, mm from the vertex of an upright head.
        bottom: Where it ends below.
        spacing: Of the CT along x, y, z, mm.
        direction: Of the CT's index axes.
    """
    rng = np.random.default_rng(1)
    patient = Patient(np.ones(3), np.array(angles), np.array(offset), 74.0, arms=True)
    body = build(patient, [], rng)
    grid = ScanGrid.covering([-200, -170, bottom], [200, 190, top], spacing, direction)
    ct = scan_ct(grid, [*table(patient), *body], CENTRES[NAMES.index("MDA")], rng)
    head = head_mask(grid, body, chin_height(patient))
    return Scan(grid.image(ct), grid.image(head), chin_height(patient))
