"""Moment exchange, MoEx ("On Feature Normalization and Data Augmentation", arXiv 2002.11102).

The normalized features of one example get the moments of another, and its label becomes a mixture
of both. Functions, to be put together in a training step:

    perm, lam = moment_exchange_draw(key, len(x), probability=0.5, lam=0.5)
    features = moment_exchange(first_layers(x), perm)
    loss = moment_exchange_loss(last_layers(features), labels, perm, lam)

Without an exchange the draw gives the identity and lam = 1, under which features stay and the loss
is the cross entropy: one program for both. It is for training only. lam is a constant, not a sample
of a Beta distribution. Gradients flow through all moments, of both examples.

The authors' ImageNet code swaps by indices as done here; their CIFAR code, positional norm of two
images and the moment shortcut, is the same map. Their norm type "bn" fails in their own code, and
is none of ours. Rows are reduced within examples: under jit with a sharded batch a permutation is
global; under `jax.shard_map` it is that of the shard, unless `axis_name` is given.
"""

import re

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key

from normjax.norms._arguments import (
  as_floating,
  check_epsilon,
  floating_dtype,
  statistics_dtype,
)
from normjax.norms._positional_norm import unbiased_moments
from normjax.norms._statistics import Reduction, moments


def moment_exchange(
  x: Float[Array, "b *positions c"],
  perm: Int[Array, " b"],
  *,
  norm_type: str = "pono",
  epsilon: float = 1e-5,
  positive_only: bool = False,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b *positions c"]:
  """Give each example's normalized features the moments of another example.

  y = (x - mean) / std * std[perm] + mean[perm], with x (b, ..., c) -> y (b, ..., c) and
  std = sqrt(var + epsilon), var with divisor n - 1. The moments are over

      "in"                  positions (all axes but the first and the last)
      "ln"                  positions and channels
      "pono"                channels
      "gn<k>", "gn-d<k>"    positions and groups of channels: k groups, or groups of k channels
      "gpono<k>", "gpono-d<k>"    groups of channels

  At a position without variance std[perm] / std may be as large as std[perm] / sqrt(epsilon).

  Args:
    x: floating features, channels last.
    perm: for each example the one whose moments it gets, integers (b,).
    norm_type: which entries share moments.
    epsilon: added to the variance. 0 is allowed; constant entries then give NaN.
    positive_only: moments of the positive entries (mean and variance 0 where there are none), with
      divisor n; all entries are mapped.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`); perm then counts
      through all shards. None: through the shard's own examples.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The features with exchanged moments.

  Raises:
    ValueError: if x is not floating or has less than two axes, perm has another shape or is no
      integer, epsilon < 0, norm_type is unknown or does not divide the channels, or moments would
      be those of a single entry.

  Reference:
    Li et al., "On Feature Normalization and Data Augmentation", 2020, arXiv 2002.11102.

  Example:
    >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
    >>> print(moment_exchange(x, jnp.array([1, 0]), epsilon=0.0))
    [[10. 30.]
     [ 1.  3.]]
  """
  x, perm = as_floating(x), jnp.asarray(perm)
  check_epsilon(epsilon)
  if x.ndim < 2:
    raise ValueError(f"x must have shape (batch, ..., channels), got {x.shape}")
  _check_perm(perm, x.shape[0])
  num_groups, axes = _reduced(norm_type, x.shape)
  grouped = x.reshape(*x.shape[:-1], num_groups, -1).astype(statistics_dtype(x))
  reduction = Reduction(axes, grouped.shape, grouped > 0 if positive_only else None)
  if positive_only:
    centered, mean, var = moments(grouped, reduction)
    std = jnp.sqrt(var + epsilon)
  else:
    if all(grouped.shape[a] == 1 for a in axes):
      raise ValueError(f"norm_type {norm_type!r} has moments of single entries for shape {x.shape}")
    centered, mean, std = unbiased_moments(grouped, reduction, epsilon)
  mean_there, std_there = mean, std
  if axis_name is not None:
    mean_there, std_there = jax.lax.all_gather((mean, std), axis_name, tiled=True)
  mean_there, std_there = (jnp.take(v, perm, axis=0) for v in (mean_there, std_there))
  y = (centered * (std_there / std) + mean_there).reshape(x.shape)
  return y.astype(x.dtype if dtype is None else floating_dtype(dtype, "dtype"))


def _check_perm(perm: Int[Array, "..."], batch_size: int) -> None:
  if perm.shape != (batch_size,) or not jnp.issubdtype(perm.dtype, jnp.integer):
    raise ValueError(
      f"perm must be integers of shape ({batch_size},), one per example, got "
      f"{perm.dtype}{list(perm.shape)}"
    )


def _reduced(norm_type: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
  """Returns the number of groups and the axes of (b, ..., groups, channels) that are reduced."""
  positions, channels = tuple(range(1, len(shape) - 1)), (len(shape),)
  if norm_type == "in":
    return shape[-1], positions + channels
  if norm_type in ("ln", "pono"):
    return 1, positions + channels if norm_type == "ln" else channels
  found = re.fullmatch(r"(gn|gpono)(-d)?([1-9]\d*)", norm_type)
  if not found:
    raise ValueError(
      "norm_type must be 'in', 'ln', 'pono', or 'gn' or 'gpono' with a number of groups ('gn4') or "
      f"of channels in a group ('gn-d4'), got {norm_type!r}"
    )
  size = int(found[3])
  if shape[-1] % size:
    raise ValueError(f"norm_type {norm_type!r} must divide the {shape[-1]} channels of x")
  num_groups = shape[-1] // size if found[2] else size
  return num_groups, positions + channels if found[1] == "gn" else channels


def moment_exchange_draw(
  key: Key[Array, ""], batch_size: int, *, probability: float = 1.0, lam: float = 0.9
) -> tuple[Int[Array, " b"], Float[Array, ""]]:
  """Draw whether a step exchanges moments, and between which examples.

  (perm, lam) with a random permutation of (batch_size,) with this probability; else the identity
  and 1, which leave features and labels alone.

  Args:
    key: key of the step.
    batch_size: number of examples.
    probability: of an exchange, in [0, 1].
    lam: weight of the own label under an exchange, in [0, 1].

  Returns:
    `(perm, lam)` for `moment_exchange` and `moment_exchange_loss`.

  Raises:
    ValueError: if probability or lam is outside [0, 1].

  Reference:
    Li et al., "On Feature Normalization and Data Augmentation", 2020, arXiv 2002.11102.

  Example:
    >>> perm, lam = moment_exchange_draw(jax.random.key(0), 3, probability=0.0)
    >>> print(perm, lam)
    [0 1 2] 1.0
  """
  _check_share(probability, "probability")
  _check_share(lam, "lam")
  whether, which = jax.random.split(key)
  exchanged = jax.random.bernoulli(whether, probability)
  drawn = jax.random.permutation(which, batch_size)
  perm = jnp.where(exchanged, drawn, jnp.arange(batch_size, dtype=drawn.dtype))
  return perm, jnp.where(exchanged, lam, 1.0)


def _check_share(value: ArrayLike, name: str) -> None:
  if isinstance(value, (int, float)) and not 0 <= value <= 1:
    raise ValueError(f"{name} must be in [0, 1], got {value}")


def moment_exchange_labels(
  labels: Int[Array, " b"] | Float[Array, "b k"],
  perm: Int[Array, " b"],
  lam: ArrayLike = 0.9,
  *,
  num_classes: int | None = None,
) -> Float[Array, "b k"]:
  """Mix the labels of examples with those of the examples whose moments they get.

  t = lam * onehot(labels) + (1 - lam) * onehot(labels[perm]), labels (b,) or (b, k) -> t (b, k).

  Args:
    labels: classes 0, ..., num_classes - 1, or distributions over them.
    perm: as in `moment_exchange`.
    lam: weight of the own label; a number outside [0, 1] is refused, an array is not looked at.
    num_classes: number of classes; must be given for integers.

  Returns:
    The mixed distributions.

  Raises:
    ValueError: if lam is outside [0, 1], perm or labels have another shape, or num_classes is
      missing or not that of the distributions.

  Reference:
    Li et al., "On Feature Normalization and Data Augmentation", 2020, arXiv 2002.11102.

  Example:
    >>> print(moment_exchange_labels(jnp.array([0, 1]), jnp.array([1, 0]), 0.75, num_classes=2))
    [[0.75 0.25]
     [0.25 0.75]]
  """
  labels, perm = jnp.asarray(labels), jnp.asarray(perm)
  _check_share(lam, "lam")
  if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
    if num_classes is None:
      raise ValueError("num_classes must be given for integer labels")
    labels = jax.nn.one_hot(labels, num_classes, dtype=jnp.result_type(float))
  elif labels.ndim != 2 or num_classes not in (None, labels.shape[1]):
    raise ValueError(
      f"labels must be integers (batch,) or distributions (batch, {num_classes or 'classes'}), got "
      f"{labels.dtype}{list(labels.shape)}"
    )
  _check_perm(perm, labels.shape[0])
  labels = labels.astype(jnp.promote_types(labels.dtype, jnp.float32))
  lam = jnp.asarray(lam, labels.dtype)
  return lam * labels + (1 - lam) * jnp.take(labels, perm, axis=0)


def moment_exchange_loss(
  logits: Float[Array, "b k"],
  labels: Int[Array, " b"] | Float[Array, "b k"],
  perm: Int[Array, " b"],
  lam: ArrayLike = 0.9,
) -> Float[Array, ""]:
  """Interpolate the cross entropies with the own labels and with those of the moments.

  loss = lam * CE(logits, labels) + (1 - lam) * CE(logits, labels[perm]), each the mean over the
  batch: logits (b, k) -> ().

  Args:
    logits: what the model gives for the features with exchanged moments.
    labels: classes (b,), or distributions (b, k).
    perm: as in `moment_exchange`.
    lam: weight of the own label; 1 gives the plain cross entropy.

  Returns:
    The loss, in float32 or wider.

  Raises:
    ValueError: if logits are not floating or not (b, k); as `moment_exchange_labels`.

  Reference:
    Li et al., "On Feature Normalization and Data Augmentation", 2020, arXiv 2002.11102.

  Example:
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    >>> print(moment_exchange_loss(logits, jnp.array([0, 1]), jnp.array([1, 0])).round(4))
    0.3269
  """
  logits = as_floating(logits, "logits")
  if logits.ndim != 2:
    raise ValueError(f"logits must have shape (batch, classes), got {logits.shape}")
  targets = moment_exchange_labels(labels, perm, lam, num_classes=logits.shape[1])
  log_p = jax.nn.log_softmax(logits.astype(statistics_dtype(logits)))
  return -jnp.sum(targets.astype(log_p.dtype) * log_p) / logits.shape[0]
