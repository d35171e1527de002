"""Cases, images, grids and masks: what lies on disk, in millimetres, HU and SUV."""
