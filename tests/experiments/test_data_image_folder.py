import numpy as np
import pytest
from PIL import Image

from experiments import data

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def save(path, colour=RED, size=(20, 20), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, colour).convert(mode).save(path)


def colours(part):
  return sorted(map(tuple, part["image"][:, 0, 0]))


def test_pictures_are_scaled_and_cropped_to_the_centre(tmp_path):
  wide = Image.new("RGB", (40, 20), RED)
  wide.paste(GREEN, (3, 0, 37, 20))  # wider than the crop, for the filter
  wide.save(tmp_path / "wide.png")
  tall = Image.new("RGB", (30, 90), RED)
  tall.paste(BLUE, (0, 20, 30, 70))
  tall.save(tmp_path / "tall.png")
  dataset = data.load("image_folder", path=str(tmp_path), size=10, test_fraction=0.5)
  images = np.concatenate([dataset.train["image"], dataset.test["image"]])
  assert images.shape == (2, 10, 10, 3)
  assert images.dtype == np.uint8
  assert (dataset.num_levels, dataset.num_classes) == (256, None)
  assert sorted(map(tuple, images.mean(axis=(1, 2)).round())) == [BLUE, GREEN]
  assert images.std(axis=(1, 2)).max() < 1


def test_all_kinds_of_pictures_in_all_folders_are_found(tmp_path):
  save(tmp_path / "a.png")
  save(tmp_path / "b/c/d.JPG", GREEN)
  save(tmp_path / "b/e.webp", BLUE)
  save(tmp_path / "f.png", (100, 100, 100), mode="L")
  save(tmp_path / "g.gif", (0, 0, 0), mode="P")
  (tmp_path / "notes.txt").write_text("no picture")
  dataset = data.load("image_folder", path=str(tmp_path), size=8, test_fraction=0.2)
  assert len(dataset.train["image"]) == 4
  assert len(dataset.test["image"]) == 1
  found = np.array(colours(dataset.train) + colours(dataset.test)).astype(int)
  for colour in (RED, GREEN, BLUE, (100, 100, 100), (0, 0, 0)):
    assert abs(found - np.array(colour)).max(axis=1).min() < 8  # JPEG and WebP lose a little


def test_turned_photos_stand_upright(tmp_path):
  photo = Image.new("RGB", (20, 20), RED)
  photo.paste(GREEN, (0, 0, 20, 10))
  exif = Image.Exif()
  exif[0x0112] = 3  # half a turn
  photo.save(tmp_path / "a.png", exif=exif)
  save(tmp_path / "b.png", BLUE)
  dataset = data.load("image_folder", path=str(tmp_path), size=20, test_fraction=0.5)
  images = np.concatenate([dataset.train["image"], dataset.test["image"]])
  turned = images[(images[:, 0, 0] != BLUE).any(-1)][0]
  assert tuple(turned[2, 2]) == RED
  assert tuple(turned[-3, 2]) == GREEN


def test_grey_pictures(tmp_path):
  save(tmp_path / "a.png", (10, 10, 10))
  save(tmp_path / "b.png", (20, 20, 20), mode="L")
  dataset = data.load("image_folder", path=str(tmp_path), size=8, channels=1, test_fraction=0.5)
  assert dataset.shape == (8, 8, 1)
  assert colours(dataset.train) + colours(dataset.test) in ([(10,), (20,)], [(20,), (10,)])


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_folder_of_two_parts_keeps_them(tmp_path, held_out):
  for i in range(3):
    save(tmp_path / f"train/some/{i}.png", RED)
  save(tmp_path / held_out / "0.png", GREEN)
  dataset = data.load("image_folder", path=str(tmp_path), size=8)
  assert colours(dataset.train) == [RED] * 3
  assert colours(dataset.test) == [GREEN]


def test_the_random_split_is_always_alike_and_complete(tmp_path):
  images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1) * np.ones((4, 4, 3), np.uint8)
  np.savez(tmp_path / "x.npz", images)
  one, two = (
    data.load("image_folder", path=str(tmp_path / "x.npz"), size=4, test_fraction=0.3)
    for _ in range(2)
  )
  assert (len(one.train["image"]), len(one.test["image"])) == (35, 15)
  np.testing.assert_array_equal(one.train["image"], two.train["image"])
  assert sorted(colours(one.train) + colours(one.test)) == [(i,) * 3 for i in range(50)]
  assert colours(one.test) != [(i,) * 3 for i in range(15)]


def test_an_npz_with_both_parts(tmp_path):
  rng = np.random.default_rng(0)
  train, test = (rng.integers(256, size=(n, 6, 6, 3)).astype(np.uint8) for n in (5, 2))
  np.savez(tmp_path / "x.npz", train=train, val=test)
  dataset = data.load("image_folder", path=str(tmp_path / "x.npz"), size=6)
  np.testing.assert_array_equal(dataset.train["image"], train)
  np.testing.assert_array_equal(dataset.test["image"], test)


def test_an_npz_of_another_size_is_scaled(tmp_path):
  half = np.zeros((2, 8, 8, 1), np.uint8)
  half[1] = 200
  np.savez(tmp_path / "x.npz", image=half)
  dataset = data.load("image_folder", path=str(tmp_path / "x.npz"), size=4)
  assert dataset.shape == (4, 4, 3)
  assert sorted(colours(dataset.train) + colours(dataset.test)) == [(0,) * 3, (200,) * 3]


def test_published_imagenet64_batches(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(7, 4, 4, 3)).astype(np.uint8)
  flat = images.transpose(0, 3, 1, 2).reshape(7, 48)
  for folder, name, rows in (
    ("train", "train_data_batch_1", flat[:3]),
    ("train", "train_data_batch_2", flat[3:5]),
    ("val", "val_data", flat[5:]),
  ):
    (tmp_path / folder).mkdir(exist_ok=True)
    np.savez(tmp_path / folder / f"{name}.npz", data=rows, labels=np.ones(len(rows)))
  dataset = data.load("image_folder", path=str(tmp_path), size=4)
  np.testing.assert_array_equal(dataset.train["image"], images[:5])
  np.testing.assert_array_equal(dataset.test["image"], images[5:])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"size": 0}, "size must be at least 1, got 0"),
    ({"channels": 4}, r"channels must be 3 \(colour\) or 1 \(grey\), got 4"),
    ({"test_fraction": 0.0}, "test_fraction must be between 0 and 1, got 0.0"),
    ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1, got 1.0"),
    ({"path": "nowhere"}, "path must be a folder of images or an .npz, nothing is at nowhere"),
  ],
)
def test_wrong_options(tmp_path, options, message):
  save(tmp_path / "a.png")
  save(tmp_path / "b.png")
  with pytest.raises(ValueError, match=message):
    data.load("image_folder", **{"path": str(tmp_path)} | options)


def test_a_folder_without_pictures(tmp_path):
  (tmp_path / "notes.txt").write_text("no picture")
  with pytest.raises(ValueError, match=f"no images in {tmp_path}: looked for .bmp, .*npz files"):
    data.load("image_folder", path=str(tmp_path))


def test_a_single_picture_can_not_be_split(tmp_path):
  save(tmp_path / "a.png")
  with pytest.raises(ValueError, match=f"{tmp_path} holds 1 image"):
    data.load("image_folder", path=str(tmp_path))


def test_damaged_pictures_are_named(tmp_path):
  save(tmp_path / "a.png", size=(200, 200))
  noise = np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)
  Image.fromarray(noise).save(tmp_path / "b.png")
  whole = (tmp_path / "b.png").read_bytes()
  for content in (b"no picture", whole[: len(whole) // 2]):
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"can't read the image {tmp_path}/b.png: "):
      data.load("image_folder", path=str(tmp_path), size=8)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"other": np.zeros((2, 4, 4, 3), np.uint8)}, "must hold one of image, .*, got other"),
    ({"image": np.zeros((2, 4, 4, 3))}, r"must be uint8 .*, got float64 \(2, 4, 4, 3\)"),
    ({"image": np.zeros((2, 4, 4, 2), np.uint8)}, r"must be uint8 .*, got uint8 \(2, 4, 4, 2\)"),
    ({"image": np.zeros((2, 47), np.uint8)}, r"must be uint8 .*, got uint8 \(2, 47\)"),
  ],
)
def test_wrong_arrays(tmp_path, arrays, message):
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    data.load("image_folder", path=str(tmp_path / "x.npz"), size=4)


@pytest.mark.parametrize("content", ["text", "npy"])
def test_files_that_are_no_npz(tmp_path, content):
  if content == "npy":
    np.save(tmp_path / "x.npy", np.zeros(3))
  else:
    (tmp_path / "x.npy").write_text("text")
  with pytest.raises(ValueError, match="x.npy"):
    data.load("image_folder", path=str(tmp_path / "x.npy"))
