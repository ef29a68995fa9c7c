"""How a number is written that was found for several seeds."""

from collections.abc import Sequence

import numpy as np


def over_seeds(values: Sequence[float], digits: int = 3) -> str:
  """Return the mean ± the deviation of n - 1 degrees of freedom, which one number alone lacks."""
  mean = f"{np.mean(values):.{digits}f}"
  return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
