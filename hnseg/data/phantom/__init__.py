"""A seeded synthetic PET/CT cohort in the HECKTOR layout, for tests and the demonstration.

A case is made in this order: the centre and its grids (scanner), the patient's posture and healthy body
(anatomy), the tumours and nodes (lesions), the images (scanner). All shapes are analytic (solids).
"""

from hnseg.data.phantom.cohort import PhantomCase, make_case, make_cohort, write_case

__all__ = ["PhantomCase", "make_case", "make_cohort", "write_case"]
