"""Training scripts and what they need; see `experiments.train`."""
