"""Image sets and tables in memory, and batches of them.

`load(name)` gives a `Dataset`. "digits", "generated" and "natural_patches" with photos="bundled"
are always there; "fashion_mnist" and all of "natural_patches" are fetched once, with
`python -m experiments.data.fetch NAME`; "fashion_m" is made of those two; "image_folder" reads your
own. Of the tables, "breast_cancer", "diabetes", "iris" and "wine" are always there, and "casp",
"diamonds", "magic", "shuttle" and "weather" are fetched.
"""

import inspect
from functools import partial

from experiments.data._batches import batches
from experiments.data._dataset import Dataset, num_examples
from experiments.data._digits import digits
from experiments.data._fashion_m import fashion_m
from experiments.data._fashion_mnist import fashion_mnist
from experiments.data._generated import generated
from experiments.data._image_folder import image_folder
from experiments.data._names import check_name
from experiments.data._natural_patches import natural_patches
from experiments.data._tables import TABLES, table

_IMAGES = {
  "digits": digits,
  "fashion_m": fashion_m,
  "fashion_mnist": fashion_mnist,
  "generated": generated,
  "image_folder": image_folder,
  "natural_patches": natural_patches,
}
LOADERS = dict(sorted((_IMAGES | {name: partial(table, name) for name in TABLES}).items()))


def load(name: str, **options) -> Dataset:
  """Load a data set by its name.

  Args:
    name: a name in `LOADERS`.
    **options: arguments of that loader.

  Raises:
    ValueError: for a name or an option that doesn't exist, an option that must be given, and
      whatever else the loader finds wrong; a set that was not fetched names the command that does.

  Example:
    >>> from experiments import data
    >>> data.load("digits").shape
    (8, 8, 1)
  """
  check_name("name", name, LOADERS)
  parameters = inspect.signature(LOADERS[name]).parameters
  if options and not parameters:
    raise ValueError(f"{name} takes no options, got {', '.join(options)}")
  for option in options:
    check_name(f"an option of {name}", option, parameters)
  for option, parameter in parameters.items():
    if parameter.default is parameter.empty and option not in options:
      raise ValueError(f"{name} needs the option {option}")
  return LOADERS[name](**options)


__all__ = [
  "LOADERS",
  "TABLES",
  "Dataset",
  "batches",
  "digits",
  "fashion_m",
  "fashion_mnist",
  "generated",
  "image_folder",
  "load",
  "natural_patches",
  "num_examples",
  "table",
]
