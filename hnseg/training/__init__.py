"""From a composed configuration to a trained network: what a job is built of, and how it is fitted."""
