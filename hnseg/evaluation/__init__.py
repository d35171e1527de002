"""From masks to scores and pictures."""
