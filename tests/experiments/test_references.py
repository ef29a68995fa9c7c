import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from experiments import data
from experiments.references import references


def dataset(train, test, num_levels=256):
  """Make a data set of vectors (n, d), as images of height 1."""
  parts = ({"image": np.clip(x, 0, 255).astype(np.uint8)[:, None, :, None]} for x in (train, test))
  return data.Dataset(*parts, num_levels, None, "vectors")


def bits(log_prob, d):
  return -np.mean(log_prob) / (d * math.log(2))


@pytest.fixture(scope="module")
def normal():
  """Correlated normal levels, far from the ends and much wider than a level."""
  rng = np.random.default_rng(1)
  mix = rng.normal(size=(5, 5)) * 8
  return [np.round(128 + rng.normal(size=(n, 5)) @ mix.T) for n in (3000, 1000)]


def test_digits():
  found = references(data.load("digits"))
  assert list(found) == ["uniform", "gaussian", "gmm"]
  assert found["uniform"] == math.log2(17)
  # Known before to two digits, 2.95 and 2.57 on another split.
  assert found["gaussian"] == pytest.approx(2.949, abs=0.002)
  assert found["gmm"] == pytest.approx(2.59, abs=0.02)


def test_gaussian_is_the_one_of_noisy_images(normal):
  train, test = normal
  rng = np.random.default_rng(5)
  noisy = np.concatenate([train + rng.random(train.shape) for _ in range(100)])
  held_out = np.concatenate([test + rng.random(test.shape) for _ in range(100)])
  density = multivariate_normal(noisy.mean(axis=0), np.cov(noisy.T, bias=True))
  found = references(dataset(train, test), tiny=True)
  assert found["gaussian"] == pytest.approx(bits(density.logpdf(held_out), 5), abs=2e-3)
  assert found["uniform"] == 8.0


def test_gaussian_needs_no_variance_in_every_pixel():
  rng = np.random.default_rng(0)
  train, test = (rng.integers(100, 140, (n, 4)) for n in (500, 400))
  train[:, 1] = test[:, 1] = 255
  train[:, 3], test[:, 3] = train[:, 2], test[:, 2]
  found = references(dataset(train, test), tiny=True)
  # Pixel 1 is noise alone, a normal of variance 1/12, and so is 3 given 2, but with twice that.
  level = (40**2 - 1) / 12 + 1 / 12

  def entropy(variance):
    return 0.5 * math.log2(2 * math.pi * math.e * variance)

  conditional = level - (level - 1 / 12) ** 2 / level
  expected = (2 * entropy(level) + entropy(1 / 12) + entropy(conditional)) / 4
  assert found["gaussian"] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("d", [5, 150])
def test_mixture_is_never_worse_than_the_gaussian(d):
  rng = np.random.default_rng(2)
  mix = rng.normal(size=(d, d)) * 20 / math.sqrt(d)
  train, test = (np.round(128 + rng.normal(size=(n, d)) @ mix) for n in (800, 300))
  found = references(dataset(train, test))
  assert found["gmm"] == pytest.approx(found["gaussian"], abs=1e-4)


def truth(weights, densities, test):
  noisy = np.concatenate([test + np.random.default_rng(9).random(test.shape) for _ in range(10)])
  log_probs = [d.logpdf(noisy) + math.log(w) for w, d in zip(weights, densities, strict=True)]
  return bits(np.logaddexp(*log_probs), test.shape[1])


def test_mixture_finds_clusters():
  # Along a diagonal: neither a pixel alone nor a covariance tells them apart.
  rng = np.random.default_rng(0)

  def draw(n):
    side = rng.choice([-1, 1], (n, 1))
    return 128 + np.round(side * 20 + rng.normal(size=(n, 4)) * 4)

  train, test = draw(2000), draw(1000)
  found = references(dataset(train, test))
  clusters = [multivariate_normal(np.full(4, 128.5 + s * 20), 16 + 1 / 6) for s in (-1, 1)]
  expected = truth((0.5, 0.5), clusters, test)
  assert found["gaussian"] > expected + 0.3
  assert found["gmm"] == pytest.approx(expected, abs=0.05)


def test_mixture_of_many_dimensions_knows_correlations():
  # Contrast differs from image to image, as in photos; neighbours resemble each other.
  rng, d = np.random.default_rng(0), 150
  mix = np.exp(-np.abs(np.subtract.outer(np.arange(d), np.arange(d))) / 3)

  def draw(n):
    contrast = np.where(rng.random((n, 1)) < 0.7, 4.0, 16.0)
    return np.round(128 + contrast * rng.normal(size=(n, d)) @ mix)

  train, test = draw(3000), draw(1000)
  found = references(dataset(train, test))
  densities = [
    multivariate_normal(np.full(d, 128.5), s * mix @ mix.T + np.eye(d) / 6) for s in (16, 256)
  ]
  expected = truth((0.7, 0.3), densities, test)
  assert found["gaussian"] > expected + 0.2
  # What it lacks is what 4096 images can't tell; diagonal mixtures of bare pixels need over 5.4.
  assert expected < found["gmm"] < expected + 0.1


def test_fewer_images_than_dimensions():
  rng = np.random.default_rng(0)
  train, test = (np.round(rng.normal(128, 1, (n, 50))) for n in (40, 30))
  found = references(dataset(train, test))
  density = multivariate_normal(train.mean(axis=0) + 0.5, np.diag(train.var(axis=0) + 1 / 12))
  noisy = np.concatenate([test + rng.random(test.shape) for _ in range(50)])
  assert found["gaussian"] == pytest.approx(bits(density.logpdf(noisy), 50), abs=5e-3)
  assert math.isfinite(found["gmm"])


def test_the_seed_is_all_that_is_random(normal):
  one, two, other = (references(dataset(*normal), seed, tiny=True) for seed in (0, 0, 1))
  assert one == two
  assert one["gmm"] != other["gmm"]
  assert one["gaussian"] == pytest.approx(other["gaussian"], abs=0.02)
