"""A patient with one tumour and one node, scanned in any orientation, and networks that find them."""

import numpy as np
import SimpleITK as sitk
from members import rotation

# In LPS mm: a tumour on the right, below and behind it a node on the left, in a body of 180 x 150 mm.
TUMOUR, NODE, BODY = np.array((-30.0, 5.0, -160.0)), np.array((25.0, 20.0, -185.0)), np.array((90.0, 75.0))
SIGMA, PEAK, THRESHOLD = 8.0, 12.0, 4.0
RADIUS = SIGMA * np.sqrt(2 * np.log(PEAK / THRESHOLD))  # where the uptake falls to the threshold: 11.9 mm
NODE_HU = 120.0

# Head: what is denser than -100 HU. Lesions: SUV above 4, a node where the CT is above 70 HU.
HEAD = {"weights": [[0.0], [100.0]], "biases": [0.0, 50.0]}
LESION = {"weights": [[0.0, 0.0], [0.0, 4000.0], [100.0, 4000.0]], "biases": [0.0, -800.0, -835.0]}


def points(image: sitk.Image) -> np.ndarray:
    """The position of every voxel in mm: (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1).transpose(
        2, 1, 0, 3
    )
    turn = np.array(image.GetDirection()).reshape(3, 3)
    return index * image.GetSpacing() @ turn.T + image.GetOrigin()


def blank(size: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray) -> sitk.Image:
    """An image whose middle lies at (0, 0, -150) mm."""
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(direction.ravel())
    image.SetOrigin(np.array((0, 0, -150.0)) - direction @ ((np.array(size) - 1) / 2 * spacing))
    return image


def filled(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    array = sitk.GetImageFromArray(values.astype(np.float32))
    array.CopyInformation(image)
    return array


def make_ct(size: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray) -> sitk.Image:
    image = blank(size, spacing, direction)
    where = points(image)
    hu = np.where((np.abs(where[..., :2]) < BODY).all(-1), 20.0, -1000.0)
    hu[np.linalg.norm(where - NODE, axis=-1) < 2 * RADIUS] = NODE_HU
    return filled(image, hu)


def make_pet() -> sitk.Image:
    image = blank((60, 50, 64), (4.0, 4.0, 5.0), np.eye(3))
    where = points(image)
    distances = np.stack([np.linalg.norm(where - centre, axis=-1) for centre in (TUMOUR, NODE)])
    return filled(image, (PEAK * np.exp(-((distances / SIGMA) ** 2) / 2)).sum(0))


ORIENTATIONS = {
    "identity": ((64, 56, 80), (3.5, 3.5, 4.0), np.eye(3)),
    "flipped": ((64, 56, 80), (3.5, 3.5, 4.0), np.diag((-1.0, -1.0, 1.0))),
    "feet first": ((64, 56, 80), (3.5, 3.5, 4.0), np.diag((1.0, -1.0, -1.0))),
    "sagittal": ((56, 80, 64), (3.5, 4.0, 3.5), np.array([[0, 0, -1.0], [1, 0, 0], [0, -1.0, 0]])),
    "oblique": ((64, 56, 80), (3.5, 3.5, 4.0), rotation(12, 0) @ rotation(-8, 1) @ rotation(15, 2)),
    "fine slices": ((100, 90, 150), (2.2, 2.2, 2.1), rotation(10, 2)),
}
