"""Head labels proposed from CT, for the head stage."""
