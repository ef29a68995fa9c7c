"""What `experiments.compare` compares: `get_config(mode)`; every file has a `tiny` mode."""
