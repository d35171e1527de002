"""The volumes that the page's viewer shows."""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk

from hnseg.data.resample import AIR_HU, NO_SUV, label_to_grid, to_grid
from hnseg.evaluation.figures import Scan
from hnseg.imaging.grid import Grid, bounds
from hnseg.imaging.masks import positions

MARGIN_MM = 25.0  # of anatomy around the lesions
LEAST_MM = 120.0  # smallest edge of the box: less does not show the whole neck
FINEST_MM = 1.5
MOST_VOXELS = 600_000  # a cube of 126 mm at 1.5 mm; larger boxes are sampled more coarsely
# Steps in which values are kept: finer than noise, and few enough values to compress well.
HU_RANGE, HU_STEP = (-1024, 2000), 4
SUV_STEP = 1 / 16


def viewer_grid(scan: Scan) -> Grid:
    """The isotropic grid around all lesions, or the scan's focus where there are none, within the CT."""
    points = np.concatenate([positions(mask) for mask in (scan.truth, scan.prediction)])
    if not len(points):
        points = np.array([scan.ct.TransformIndexToPhysicalPoint(scan.focus())])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(MARGIN_MM, (LEAST_MM - (high - low)) / 2)
    first, last = bounds(scan.ct)
    low, high = np.maximum(low - margin, first), np.minimum(high + margin, last)
    edge = max(FINEST_MM, float(np.cbrt((high - low).prod() / MOST_VOXELS)))
    size = np.maximum(np.ceil((high - low) / edge), 2).astype(int)
    return Grid.centred((low + high) / 2, size.tolist(), [edge] * 3)


def viewer_volumes(scan: Scan) -> dict[str, str]:
    """NIfTI files in base64, by name: `ct` (HU), `pet` (SUV), `prediction`, and `truth` if there is one."""
    grid = viewer_grid(scan)
    hu = np.clip(to_grid(scan.ct, grid, fill=AIR_HU, antialias=True), *HU_RANGE)
    suv = to_grid(scan.pet, grid, fill=NO_SUV)
    arrays = {
        "ct": (np.rint(hu / HU_STEP) * HU_STEP).astype(np.int16),
        "pet": (np.rint(suv / SUV_STEP) * SUV_STEP).astype(np.float32),
        "prediction": label_to_grid(scan.prediction, grid),
    }
    if scan.labelled:
        arrays["truth"] = label_to_grid(scan.truth, grid)
    return {name: _nifti(grid.image(array)) for name, array in arrays.items()}


def _nifti(image: sitk.Image) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        sitk.WriteImage(image, str(path), useCompression=True)
        return base64.b64encode(path.read_bytes()).decode()
