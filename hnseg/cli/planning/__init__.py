"""What the resolved configuration makes of the paper's Tables 1 to 4."""
