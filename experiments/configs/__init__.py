"""Experiments as executable configs: `get_config(mode)`; every file has a `tiny` mode."""
