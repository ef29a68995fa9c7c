"""Fashion-MNIST, from its IDX files.

Reference:
  Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
  algorithms", 2017, arXiv 1708.07747.
"""

from pathlib import Path

import numpy as np

from experiments.data._dataset import Dataset
from experiments.data._store import require

_UINT8 = 8


def fashion_mnist() -> Dataset:
  """Load 60,000 + 10,000 grey 28x28 pictures of clothes in 10 classes.

  Raises:
    ValueError: if the set has not been fetched.
  """
  folder = require("fashion_mnist")
  train, test = (
    {
      "image": read_idx(folder / f"{part}-images-idx3-ubyte")[..., None],
      "label": read_idx(folder / f"{part}-labels-idx1-ubyte").astype(np.int32),
    }
    for part in ("train", "t10k")
  )
  return Dataset(train, test, 256, 10, "Fashion-MNIST, 28x28, 256 levels, 60000/10000")


def read_idx(path: Path) -> np.ndarray:
  """Read an IDX file of unsigned bytes.

  Two zero bytes, the type, the number of axes, each length as a big-endian int32, then the bytes.

  Raises:
    ValueError: if the file is something else, or its length is not what its header says.
  """
  data = path.read_bytes()
  if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UINT8:
    raise ValueError(f"{path} is no IDX file of unsigned bytes: it starts with {data[:4]!r}")
  start = 4 + 4 * data[3]
  if len(data) < start:
    raise ValueError(f"{path} ends within its header of {start} bytes")
  shape = tuple(int(length) for length in np.frombuffer(data, ">i4", data[3], 4))
  if len(data) - start != np.prod(shape):
    raise ValueError(f"{path} holds {len(data) - start} bytes, its header says shape {shape}")
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
