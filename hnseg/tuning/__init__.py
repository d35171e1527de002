"""Post-processing chosen on out-of-fold predictions: which components of a mask are worth keeping."""
