"""What inverse problems measure of an image, and measurements that no image gave."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data


class SuperResolution:
  """Means of squares of factor x factor pixels: (b, h, w, c) -> (b, h / factor, w / factor, c).

  Raises:
    ValueError: if `factor` is below 2 or does not divide the sides.
  """

  def __init__(self, shape, *, factor: int):
    height, width, channels = shape
    if factor < 2 or height % factor or width % factor:
      raise ValueError(
        f"config.problem.factor must be at least 2 and divide {height} and {width}, got {factor}"
      )
    self.shape, self.factor = (height // factor, width // factor, channels), factor

  def __call__(self, x, key):
    """Return the measurements of images on [0, 1]."""
    del key
    height, width, channels = self.shape
    squares = x.reshape(len(x), height, self.factor, width, self.factor, channels)
    return squares.mean((2, 4))

  def simple(self, y):
    """Return images by cubic interpolation."""
    height, width, channels = self.shape
    size = (len(y), height * self.factor, width * self.factor, channels)
    return jax.image.resize(y, size, "cubic")


class LowLight:
  """Dark and noisy images: clip(x^gamma + noise n, 0, 1), n standard normal, of x's shape.

  Raises:
    ValueError: if `gamma` is not above 0 or `noise` below 0.
  """

  def __init__(self, shape, *, gamma: float, noise: float):
    if not gamma > 0 or not noise >= 0:
      raise ValueError(
        f"config.problem must have gamma above 0 and noise at least 0, got {gamma} and {noise}"
      )
    self.shape, self.gamma, self.noise = tuple(shape), gamma, noise

  def __call__(self, x, key):
    """Return the measurements of images on [0, 1]."""
    return jnp.clip(x**self.gamma + self.noise * jax.random.normal(key, x.shape), 0, 1)

  def simple(self, y):
    """Return images by undoing the exponent."""
    return y ** (1 / self.gamma)


PROBLEMS = {"low_light": LowLight, "super_resolution": SuperResolution}


def condition(y):
  """Return what a flow is given of measurements on [0, 1]."""
  return 2 * y - 1


def unfamiliar(y, key):
  """Return measurements that a network trained on those like `y` has not seen, by name.

  Each of y's shape (b, h, w, c): inverted, with four and sixteen times the contrast (and so beyond
  [0, 1]), uniform noise, and handwritten digits.
  """
  digits = data.load("digits")
  image = digits.test["image"][np.arange(len(y)) % len(digits.test["image"])]
  grey = jax.image.resize(
    jnp.asarray(image / np.float32(digits.num_levels - 1)), (*y.shape[:3], 1), "nearest"
  )
  return {
    "inverted": 1 - y,
    "contrast x 4": 0.5 + 4 * (y - 0.5),
    "contrast x 16": 0.5 + 16 * (y - 0.5),
    "noise": jax.random.uniform(key, y.shape),
    "digits": jnp.broadcast_to(grey, y.shape),
  }
