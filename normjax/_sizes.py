"""The check of sizes that flows and models share, with one wording."""


def check_sizes(least: int = 1, /, **sizes: int | None) -> None:
  """Raise unless every size is at least 1, or whatever is said; None, for none at all, passes."""
  for name, size in sizes.items():
    if size is not None and not size >= least:
      raise ValueError(f"{name} must be at least {least}, got {size}")
