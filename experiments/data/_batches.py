"""Endless or single passes over arrays in memory, as grain iterators that a checkpoint can hold.

The element of the grain data set is a whole batch: number i is a function of i and the seed alone,
so that resuming costs nothing. Shuffling and batching example by example, as grain does by itself,
takes milliseconds for each batch; here it is one gather.
"""

import functools
import sys

import grain
import numpy as np


def batches(
  arrays: dict[str, np.ndarray],
  batch_size: int,
  seed: int = 0,
  *,
  process_index: int = 0,
  process_count: int = 1,
  shuffle: bool = True,
  repeat: bool = True,
) -> grain.DatasetIterator:
  """Iterate over batches of arrays that are equally long.

  All processes draw the same global batches and each gives its own batch_size / p rows of them, in
  order, so that the examples of a step do not depend on how many processes read them. Every epoch
  has a new order.

  Args:
    arrays: for each key an array with the examples along its first axis.
    batch_size: rows of a batch over all processes.
    seed: of the order; the same in every process.
    process_index: which process this is.
    process_count: how many there are.
    shuffle: whether to read in random order.
    repeat: go on forever, with batches that reach over the end of an epoch. Without, stop after one
      pass; the last batch may then be smaller, with rows that differ by at most one between
      processes, and no example is left out.

  Returns:
    An iterator over dictionaries with the keys of `arrays`. `get_state` and `set_state`, or
    `grain.checkpoint`, resume it exactly.

  Raises:
    ValueError: if there are no arrays, lengths differ, the batch has more rows than there are
      examples or can't be shared evenly by the processes, or a number is out of range.
  """
  lengths = {name: len(array) for name, array in arrays.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(f"arrays must be one or more and equally long, got lengths {lengths}")
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index must be from 0 to process_count - 1 = {process_count - 1}, got "
      f"{process_index}"
    )
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size must be a positive multiple of the {process_count} process(es), got {batch_size}"
    )
  if seed < 0:
    raise ValueError(f"seed must not be negative, got {seed}")
  (length,) = set(lengths.values())
  if batch_size > length:
    raise ValueError(f"batch_size {batch_size} is more than the {length} examples")
  share = (process_index, process_count)
  source = _Batches(arrays, length, batch_size, share, seed if shuffle else None, repeat)
  dataset = grain.MapDataset.source(source)
  # A batch takes less time than handing it from thread to thread.
  return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


class _Batches:
  """Batch number i, for grain."""

  def __init__(
    self,
    arrays: dict[str, np.ndarray],
    length: int,
    batch_size: int,
    share: tuple[int, int],
    seed: int | None,
    repeat: bool,
  ):
    self._arrays, self._length, self._batch_size = arrays, length, batch_size
    self._share, self._repeat = share, repeat

    # A batch may touch two epochs, and no other is needed at that time.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
      if seed is None:
        return np.arange(length)
      return np.random.default_rng((seed, epoch)).permutation(length)

    self._order = order

  def __len__(self) -> int:
    return sys.maxsize if self._repeat else -(-self._length // self._batch_size)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    epoch, start = divmod(index * self._batch_size, self._length)
    chosen = self._order(epoch)[start : start + self._batch_size]
    if self._repeat and len(chosen) < self._batch_size:
      chosen = np.concatenate([chosen, self._order(epoch + 1)[: self._batch_size - len(chosen)]])
    process, count = self._share
    own = np.array_split(chosen, count)[process]
    return {name: array[own] for name, array in self._arrays.items()}
