"""Head-and-neck tumour and lymph-node segmentation in PET/CT, coarse to fine."""

__version__ = "0.1.0"
