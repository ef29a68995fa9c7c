import itertools

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import data


def numbers(n):
  return {"image": np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3), "label": np.arange(n)}


def labels(iterator, count):
  return [next(iterator)["label"] for _ in range(count)]


def test_batches_hold_rows_of_the_arrays():
  arrays = numbers(10)
  for batch in itertools.islice(data.batches(arrays, 4, seed=3), 6):
    assert batch.keys() == arrays.keys()
    assert len(batch["label"]) == 4
    assert batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"], arrays["image"][batch["label"]])


def test_every_epoch_is_a_new_order_of_everything():
  # 10 examples in batches of 4: epochs end within batches, after 2.5 of them.
  stream = np.concatenate(labels(data.batches(numbers(10), 4), 25))
  epochs = stream.reshape(10, 10)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (10, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 10


def test_the_seed_is_the_order():
  streams = [np.concatenate(labels(data.batches(numbers(50), 50, seed), 4)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(streams[0], streams[1])
  # No epoch of one seed is an epoch of another, be it earlier or later.
  epochs = [tuple(epoch) for epoch in np.concatenate(streams[1:]).reshape(8, 50)]
  assert len(set(epochs)) == 8


def test_without_shuffle_and_repeat_everything_comes_once_in_order():
  batches = list(data.batches(numbers(10), 4, shuffle=False, repeat=False))
  assert [len(batch["label"]) for batch in batches] == [4, 4, 2]
  np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), np.arange(10))
  shuffled = [b["label"] for b in data.batches(numbers(10), 4, repeat=False)]
  np.testing.assert_array_equal(np.sort(np.concatenate(shuffled)), np.arange(10))
  assert not np.array_equal(np.concatenate(shuffled), np.arange(10))


def test_without_shuffle_epochs_follow_each_other():
  stream = np.concatenate(labels(data.batches(numbers(5), 3, shuffle=False), 5))
  np.testing.assert_array_equal(stream, np.tile(np.arange(5), 3))


@pytest.mark.parametrize("repeat", [True, False])
def test_processes_share_the_batches_of_a_single_one(repeat):
  # 14 examples: batches reach over the end of an epoch, or the last one is of 2 rows for 3.
  options = {"repeat": repeat, "process_count": 3}
  parts = [data.batches(numbers(14), 6, process_index=i, **options) for i in range(3)]
  for whole in labels(data.batches(numbers(14), 6, repeat=repeat), 5 if repeat else 3):
    shares = [labels(part, 1)[0] for part in parts]
    assert max(map(len, shares)) - min(map(len, shares)) <= (len(whole) < 6)
    np.testing.assert_array_equal(np.concatenate(shares), whole)


@pytest.mark.parametrize("at", [0, 1, 7])
def test_state_resumes_exactly(at):
  iterator = data.batches(numbers(10), 4)
  labels(iterator, at)
  state = iterator.get_state()
  expected = labels(iterator, 6)
  other = data.batches(numbers(10), 4)
  labels(other, 3)
  other.set_state(state)
  np.testing.assert_array_equal(labels(other, 6), expected)


def test_a_checkpoint_resumes_exactly(tmp_path):
  iterator = data.batches(numbers(10), 4)
  labels(iterator, 7)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(7, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
  expected = labels(iterator, 6)
  other = data.batches(numbers(10), 4)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.restore(7, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
  np.testing.assert_array_equal(labels(other, 6), expected)


@pytest.mark.parametrize(
  ("arrays", "arguments", "message"),
  [
    ({}, {}, "arrays must be one or more and equally long, got lengths {}"),
    (
      {"a": np.zeros(3), "b": np.zeros(4)},
      {},
      "equally long, got lengths {'a': 3, 'b': 4}",
    ),
    (numbers(0), {}, "batch_size 4 is more than the 0 examples$"),
    (numbers(3), {}, "batch_size 4 is more than the 3 examples$"),
    (numbers(3), {"repeat": False}, "batch_size 4 is more than the 3 examples$"),
    (
      numbers(3),
      {"process_count": 2, "process_index": 1},
      "batch_size 4 is more than the 3 examples$",
    ),
    (numbers(9), {"process_count": 3}, r"multiple of the 3 process\(es\), got 4"),
    (
      numbers(9),
      {"process_count": 2, "process_index": 2},
      "from 0 to process_count - 1 = 1, got 2",
    ),
    (numbers(9), {"process_index": -1}, "from 0 to process_count - 1 = 0, got -1"),
    (numbers(9), {"batch_size": 0}, r"positive multiple of the 1 process\(es\), got 0"),
    (numbers(9), {"seed": -1}, "seed must not be negative, got -1"),
  ],
)
def test_wrong_batches(arrays, arguments, message):
  with pytest.raises(ValueError, match=message):
    data.batches(arrays, **{"batch_size": 4} | arguments)
