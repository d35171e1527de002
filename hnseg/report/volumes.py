"""What the viewer of a case shows: CT, PET and masks around the lesions, small enough to stand in a page."""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk

from hnseg.data.resample import AIR_HU, NO_SUV, label_to_grid, to_grid
from hnseg.evaluation.view import Scan
from hnseg.geometry import Grid, bounds

FINEST_MM = 1.5
MOST_VOXELS = 600_000  # a cube of 126 mm at 1.5 mm; larger boxes are sampled more coarsely
# Steps in which values are kept: finer than noise, and few enough values to compress well.
HU_RANGE, HU_STEP = (-1024, 2000), 4
SUV_STEP = 1 / 16


def viewer_grid(shown: sitk.Image) -> Grid:
    """The isotropic grid over all of a part of the CT, however that is turned."""
    low, high = bounds(shown)
    extent = high - low
    edge = max(FINEST_MM, float(np.cbrt(extent.prod() / MOST_VOXELS)))
    size = np.maximum(np.ceil(extent / edge), 2).astype(int)
    return Grid.centred((low + high) / 2, size.tolist(), [edge] * 3)


def viewer_volumes(scan: Scan, grid: Grid) -> dict[str, str]:
    """NIfTI files in base64, by name: `ct` (HU), `pet` (SUV), `prediction` and, where known, `truth`."""
    hu = np.clip(to_grid(scan.ct, grid, fill=AIR_HU, antialias=True), *HU_RANGE)
    suv = to_grid(scan.pet, grid, fill=NO_SUV)
    arrays = {
        "ct": (np.rint(hu / HU_STEP) * HU_STEP).astype(np.int16),
        "pet": (np.rint(suv / SUV_STEP) * SUV_STEP).astype(np.float32),
        "prediction": label_to_grid(scan.prediction, grid),
    }
    if scan.truth is not None:
        arrays["truth"] = label_to_grid(scan.truth, grid)
    return {name: _nifti(grid.image(array)) for name, array in arrays.items()}


def _nifti(image: sitk.Image) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        sitk.WriteImage(image, str(path), useCompression=True)
        return base64.b64encode(path.read_bytes()).decode()
