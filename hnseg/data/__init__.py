"""From cases on disk to training patches."""
