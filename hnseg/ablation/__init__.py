"""A sweep's runs → every arm's masks of every patient, out of fold, and the table that compares the arms."""
