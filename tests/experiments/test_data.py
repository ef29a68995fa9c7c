import os
import re
import struct

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import _fashion_m, _fashion_mnist, _natural_patches, _store
from experiments.data._dataset import Dataset


def assert_is_dataset(dataset, shape, num_train, num_test):
  assert isinstance(dataset, Dataset)
  assert dataset.shape == shape
  for part, number in ((dataset.train, num_train), (dataset.test, num_test)):
    assert part["image"].shape == (number, *shape)
    assert part["image"].dtype == np.uint8
    assert part["image"].max() < dataset.num_levels
    assert set(part) == ({"image"} if dataset.num_classes is None else {"image", "label"})
    if dataset.num_classes is not None:
      assert part["label"].shape == (number,)
      assert part["label"].dtype == np.int32
      assert set(part["label"]) <= set(range(dataset.num_classes))


def test_digits_are_all_digits_split_at_random():
  from sklearn.datasets import load_digits

  dataset = data.load("digits")
  assert_is_dataset(dataset, (8, 8, 1), 1437, 360)
  assert (dataset.num_levels, dataset.num_classes) == (17, 10)
  assert dataset.train["image"].max() == 16

  def pairs(images, labels):
    return sorted(
      (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )

  both = [np.concatenate([dataset.train[key], dataset.test[key]]) for key in ("image", "label")]
  raw = load_digits()
  assert pairs(*both) == pairs(raw.images[..., None].astype(np.uint8), raw.target)
  for end in (raw.target[:360], raw.target[-360:]):
    assert not np.array_equal(dataset.test["label"], end)
  # scikit-learn sorts by writer; at random, the test part has about 36 of each class.
  assert min(np.bincount(dataset.test["label"])) > 20
  np.testing.assert_array_equal(data.load("digits").train["image"], dataset.train["image"])


def idx(array):
  return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_files(tmp_path):
  array = np.arange(2 * 3 * 300, dtype=np.uint8).reshape(2, 300, 3)
  (tmp_path / "x").write_bytes(idx(array))
  np.testing.assert_array_equal(_fashion_mnist.read_idx(tmp_path / "x"), array)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "is no IDX file of unsigned bytes: it starts with b''"),
    (b"\x1f\x8b\x08\x08 gzipped", "is no IDX file"),
    (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "is no IDX file"),  # float32
    (b"\0\0\x08\3\0\0\0\1", "ends within its header of 16 bytes"),
    (idx(np.zeros((2, 3), np.uint8))[:-1], r"holds 5 bytes, its header says shape \(2, 3\)"),
    (idx(np.zeros((2, 3), np.uint8)) + b"x", r"holds 7 bytes, its header says shape \(2, 3\)"),
  ],
)
def test_wrong_idx_files(tmp_path, content, message):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    _fashion_mnist.read_idx(tmp_path / "x")


def fake_fashion_mnist(folder):
  rng = np.random.default_rng(0)
  arrays = {}
  for part, number in (("train", 30), ("t10k", 20)):
    arrays[part] = rng.integers(256, size=(number, 28, 28)).astype(np.uint8)
    labels = np.arange(number).astype(np.uint8) % 10
    (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(arrays[part]))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
  return arrays


def pin(monkeypatch, name, folder):
  """Let the files in a folder be what a set consists of."""
  files = {path.name: _store.sha256(path) for path in folder.iterdir()}
  monkeypatch.setitem(_store.SETS, name, _store.SETS[name]._replace(files=files))
  monkeypatch.setenv("NORMJAX_DATA", str(folder.parent))


def test_fashion_mnist_from_its_files(monkeypatch, tmp_path):
  (tmp_path / "fashion_mnist").mkdir()
  arrays = fake_fashion_mnist(tmp_path / "fashion_mnist")
  pin(monkeypatch, "fashion_mnist", tmp_path / "fashion_mnist")
  dataset = data.load("fashion_mnist")
  assert_is_dataset(dataset, (28, 28, 1), 30, 20)
  np.testing.assert_array_equal(dataset.train["image"][..., 0], arrays["train"])
  np.testing.assert_array_equal(dataset.test["image"][..., 0], arrays["t10k"])
  np.testing.assert_array_equal(dataset.test["label"], np.arange(20) % 10)


@pytest.mark.parametrize("name", ["fashion_mnist", "natural_patches"])
def test_sets_that_are_not_here_name_the_command(monkeypatch, tmp_path, name):
  monkeypatch.setenv("NORMJAX_DATA", str(tmp_path))
  command = f"python -m experiments.data.fetch {name}"
  with pytest.raises(ValueError, match=f"{name} is not in {tmp_path}/{name}: .*{command}$"):
    data.load(name)


def fetched(name):
  """Whether a set is here; in CI it must be, so that these tests can't pass by being skipped."""
  return os.environ.get("CI") or not _store.problems(name, _store.root() / name)


def test_fashion_mnist_itself():
  if not fetched("fashion_mnist"):
    pytest.skip("needs python -m experiments.data.fetch fashion_mnist")
  dataset = data.load("fashion_mnist")
  assert_is_dataset(dataset, (28, 28, 1), 60_000, 10_000)
  assert (dataset.num_levels, dataset.num_classes) == (256, 10)
  assert set(np.bincount(dataset.train["label"])) == {6000}
  assert set(np.bincount(dataset.test["label"])) == {1000}
  assert round(dataset.train["image"].mean(), 2) == 72.94


def test_fashion_m_takes_clothes_from_patches_of_its_part(monkeypatch, tmp_path):
  (tmp_path / "fashion_mnist").mkdir()
  clothes = fake_fashion_mnist(tmp_path / "fashion_mnist")
  pin(monkeypatch, "fashion_mnist", tmp_path / "fashion_mnist")
  # A flat patch shows by the frame around the picture which one it is.
  patches = {"train": np.arange(7), "t10k": 100 + np.arange(5)}
  train, test = (
    {"image": np.tile(levels.astype(np.uint8)[:, None, None, None], (1, 32, 32, 3))}
    for levels in patches.values()
  )
  stand_in = lambda photos, size: Dataset(train, test, 256, None, f"{photos} {size}")
  monkeypatch.setattr(_fashion_m, "natural_patches", stand_in)
  dataset = data.load("fashion_m")
  assert_is_dataset(dataset, (32, 32, 3), 30, 20)
  assert (dataset.num_levels, dataset.num_classes) == (256, 10)
  for part, name in ((dataset.train, "train"), (dataset.test, "t10k")):
    frame = part["image"][:, :1, :1].astype(int)
    assert set(frame.ravel()) == set(patches[name])  # every patch occurs among so few
    inside = part["image"][:, 2:30, 2:30]
    np.testing.assert_array_equal(inside, abs(frame - clothes[name][..., None].astype(int)))
    np.testing.assert_array_equal(part["label"], np.arange(len(frame)) % 10)
  np.testing.assert_array_equal(data.load("fashion_m").test["image"], dataset.test["image"])
  other = data.load("fashion_m", seed=1).train["image"]
  assert not np.array_equal(other, dataset.train["image"])
  few = data.load("fashion_m", num_train=4, num_test=3)
  np.testing.assert_array_equal(few.train["image"], dataset.train["image"][:4])
  np.testing.assert_array_equal(few.test["image"], dataset.test["image"][:3])
  np.testing.assert_array_equal(few.test["label"], [0, 1, 2])
  for options in ({"num_train": 0}, {"num_test": 21}):
    with pytest.raises(ValueError, match="must be from 1 to .* or None, got"):
      data.load("fashion_m", **options)


def test_fashion_m_names_the_command_of_each_set(monkeypatch, tmp_path):
  monkeypatch.setenv("NORMJAX_DATA", str(tmp_path))
  with pytest.raises(ValueError, match="experiments.data.fetch fashion_mnist$"):
    data.load("fashion_m")
  (tmp_path / "fashion_mnist").mkdir()
  fake_fashion_mnist(tmp_path / "fashion_mnist")
  pin(monkeypatch, "fashion_mnist", tmp_path / "fashion_mnist")
  with pytest.raises(ValueError, match="experiments.data.fetch natural_patches$"):
    data.load("fashion_m")


def test_natural_patches_themselves():
  if not fetched("natural_patches"):
    pytest.skip("needs python -m experiments.data.fetch natural_patches")
  dataset = data.load("natural_patches")
  # The very number depends on how the decoder and the resampling round.
  assert abs(len(dataset.train["image"]) - 30_486) < 30
  assert abs(len(dataset.test["image"]) - 8_842) < 30
  assert_is_dataset(dataset, (32, 32, 3), len(dataset.train["image"]), len(dataset.test["image"]))
  bundled = data.load("natural_patches", photos="bundled")
  for part in ("train", "test"):
    few, all_ = (
      {patch.tobytes() for patch in getattr(d, part)["image"]} for d in (bundled, dataset)
    )
    assert few < all_
  # Only flat spots look alike in two photos, and those were left out.
  held_out = {patch.tobytes() for patch in dataset.test["image"]}
  assert not any(patch.tobytes() in held_out for patch in dataset.train["image"])


def test_bundled_patches_need_no_fetching(monkeypatch, tmp_path):
  monkeypatch.setenv("NORMJAX_DATA", str(tmp_path))
  dataset = data.load("natural_patches", photos="bundled", size=16, stride=16, long_side=256)
  assert_is_dataset(dataset, (16, 16, 3), len(dataset.train["image"]), len(dataset.test["image"]))
  assert (dataset.num_levels, dataset.num_classes) == (256, None)
  assert len(dataset.train["image"]) > 500
  assert len(dataset.test["image"]) > 200
  for part in (dataset.train, dataset.test):
    assert min(part["image"].std(axis=(1, 2)).mean(-1)) >= 10 - 1e-3
  # Training and held-out photos differ in a way that no shuffling of patches would show.
  assert abs(dataset.train["image"].mean() - dataset.test["image"].mean()) > 1


def test_fetched_photos_are_split_by_photo(monkeypatch, tmp_path):
  folder = tmp_path / "natural_patches"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, red in (("Dragonfly_by_Bolly", 250), ("Aqua", 0)):
    photo = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    photo[..., 0] = red
    Image.fromarray(photo).save(folder / f"{name}.jpg", quality=95)
  pin(monkeypatch, "natural_patches", folder)
  monkeypatch.setattr(_natural_patches, "_bundled", dict)
  dataset = data.load("natural_patches", size=8, stride=8, long_side=64, min_std=0.0)
  assert len(dataset.train["image"]) == len(dataset.test["image"]) == 6 * 8
  assert dataset.train["image"][..., 0].mean() < 60
  assert dataset.test["image"][..., 0].mean() > 190


def test_cut_takes_every_window_in_its_place():
  photo = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
  patches = _natural_patches.cut([photo], size=4, stride=3, min_std=0.0)
  expected = [photo[i : i + 4, j : j + 4] for i in (0, 3) for j in (0, 3)]
  np.testing.assert_array_equal(patches, expected)


def test_cut_leaves_flat_patches_out():
  photo = np.zeros((4, 8, 3), np.uint8)
  photo[:, 4:, 0] = np.array([0, 60])[[0, 1, 0, 1]]  # std 30 in one of three channels: mean 10
  assert _natural_patches.cut([photo], size=4, stride=4, min_std=10.0).shape == (1, 4, 4, 3)
  assert _natural_patches.cut([photo], size=4, stride=4, min_std=10.1).shape == (0, 4, 4, 3)


def test_patches_larger_than_a_photo_are_refused():
  with pytest.raises(ValueError, match="size must be at most 4, a photo's side, got 5"):
    _natural_patches.cut([np.zeros((4, 6, 3), np.uint8)], size=5, stride=1, min_std=0.0)


@pytest.mark.parametrize(
  ("size", "expected"), [((800, 400), (200, 400, 3)), ((300, 900), (400, 133, 3))]
)
def test_shrink_keeps_proportions(size, expected):
  photo = Image.new("RGB", size, (10, 200, 30))
  shrunk = _natural_patches.shrink(photo, 400)
  assert shrunk.shape == expected
  np.testing.assert_array_equal(shrunk[5, 5], (10, 200, 30))


def test_shrink_does_not_enlarge():
  assert _natural_patches.shrink(Image.new("RGB", (30, 20)), 400).shape == (20, 30, 3)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"photos": "some"}, "photos must be .*, got 'some'"),
    ({"size": 0}, "size must be from 1 to long_side = 400, got 0"),
    ({"size": 401}, "size must be from 1 to long_side = 400, got 401"),
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"min_std": 300.0}, "min_std 300.0 leaves no patch"),
  ],
)
def test_wrong_patches(options, message):
  with pytest.raises(ValueError, match=message):
    data.load("natural_patches", **{"photos": "bundled"} | options)


def test_generated_images_depend_on_the_seed_alone():
  dataset = data.load("generated", size=16, num_train=64, num_test=16)
  assert_is_dataset(dataset, (16, 16, 3), 64, 16)
  assert dataset.num_classes == 4
  again = data.load("generated", size=16, num_train=64, num_test=16)
  other = data.load("generated", size=16, num_train=64, num_test=16, seed=1)
  for part in ("train", "test"):
    for key in ("image", "label"):
      np.testing.assert_array_equal(getattr(dataset, part)[key], getattr(again, part)[key])
      assert not np.array_equal(getattr(dataset, part)[key], getattr(other, part)[key])
  images = np.concatenate([dataset.train["image"], dataset.test["image"]])
  assert len({image.tobytes() for image in images}) == 80
  assert min(images.std(axis=(1, 2)).mean(-1)) > 5


@pytest.mark.parametrize("name", ["size", "num_train", "num_test"])
def test_wrong_generated(name):
  with pytest.raises(ValueError, match=f"{name} must be at least ., got 0"):
    data.load("generated", **{name: 0})


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("digit", {}, "name must be one of breast_cancer, .*, got 'digit'; did you mean digits?"),
    ("cifar", {}, "name must be one of .*, got 'cifar'$"),
    (
      "natural_patches",
      {"photo": "all"},
      "an option of natural_patches must be one of photos, .*, got 'photo'; did you mean photos?",
    ),
    ("digits", {"size": 8}, "digits takes no options, got size"),
    ("image_folder", {"size": 8}, "image_folder needs the option path"),
  ],
)
def test_wrong_names_and_options(name, options, message):
  with pytest.raises(ValueError, match=message):
    data.load(name, **options)


def test_the_registry_lists_what_the_package_documents():
  assert list(data.LOADERS) == sorted(data.LOADERS)
  assert set(_store.SETS) < set(data.LOADERS)
  assert set(re.findall(r'"(\w+)"', data.__doc__)) - {"bundled"} == set(data.LOADERS)
