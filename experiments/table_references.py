"""What simple densities reach on the same split of a table: the numbers that a flow must beat."""

import numpy as np
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from experiments.references import fit_quietly

# Chosen by a fifth of the training rows; one component is the full-covariance Gaussian.
_COMPONENTS = (1, 5, 20)
# Those of 20 components are fitted with at least so many rows each.
_ROWS = 10


REFERENCES = ("gaussian", "gmm")


def table_references(
  train: np.ndarray,
  test: np.ndarray,
  seed: int = 0,
  *,
  names: tuple[str, ...] = REFERENCES,
  tiny: bool = False,
) -> dict[str, float]:
  """Score two reference densities on the held-out rows of a table.

  Takes 10 seconds for 40,000 rows of 10 columns, of one core.

  Args:
    train: rows (n, d) to fit to.
    test: rows (m, d) to score.
    seed: of the choice of rows and the mixture's start.
    names: which ones.
    tiny: fit one small mixture, roughly.

  Returns:
    Nats per held-out row, -log p, under
    "gaussian": mean and full covariance of the training rows;
    "gmm": the Gaussian mixture with full covariances of 1, 5 or 20 components, as many as do best
      on a fifth of the training rows, fitted again to all.
  """
  # The threads of several libraries, or of a training run beside, would wait for each other.
  with threadpool_limits(1):
    sizes = {"gaussian": lambda: 1, "gmm": lambda: _components(train, seed, tiny)}
    return {name: -float(_fit(train, sizes[name](), seed, tiny).score(test)) for name in names}


def _components(train: np.ndarray, seed: int, tiny: bool) -> int:
  """Return how many components do best on a fifth of the rows, fitted to the others."""
  order = np.random.default_rng(seed).permutation(len(train))
  cut = len(train) // 5
  chosen, rest = train[order[:cut]], train[order[cut:]]
  most = 2 if tiny else len(rest) // _ROWS
  sizes = [size for size in _COMPONENTS if size <= max(1, most)]
  scores = [_fit(rest, size, seed, tiny).score(chosen) for size in sizes if cut]
  return sizes[int(np.argmax(scores))] if scores else 1


def _fit(rows: np.ndarray, components: int, seed: int, tiny: bool) -> GaussianMixture:
  mixture = GaussianMixture(components, random_state=seed, max_iter=2 if tiny else 100)
  return fit_quietly(mixture, np.asarray(rows, np.float64))
