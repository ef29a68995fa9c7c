"""What TarFlow's blocks are conditioned on: labels, and guidance away from a weaker prediction.

Guidance extrapolates from a second, weaker prediction through the first (Ho and Salimans,
"Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598): there without the label, here
optionally also with flatter attention, which serves models without labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.flows._checks import is_concrete


class Guidance(NamedTuple):
  """How a block's prediction of (a, b), log-scale and shift, is pushed away from a weaker one."""

  weight: float | jax.Array
  what: str  # "ab", "a" or "b"
  annealed: bool
  temperature: float | jax.Array  # of the attention of the weaker prediction

  def push(self, strong, weak, fraction):
    """Return s + g (s - w) for what is guided, the strong prediction s for the rest.

    `fraction` in (0, 1] says how far the sequence has come: annealed, g grows with it.
    """
    push = lambda name, s, w: (
      s + self._weight(fraction, s.dtype) * (s - w) if name in self.what else s
    )
    return [push(*pair) for pair in zip("ab", strong, weak, strict=True)]

  def _weight(self, fraction, dtype):
    weight = jnp.asarray(self.weight, dtype)
    return weight * fraction.astype(dtype) if self.annealed else weight


class Condition(NamedTuple):
  """What all blocks of a TarFlow are given besides tokens; `forward` knows no guidance."""

  label: jax.Array | None  # (b,) of -1 (no label), 0, ..., num_classes - 1
  guidance: Guidance | None = None


UNCONDITIONAL = Condition(None)


def check_guidance(guidance: Guidance, has_contrast: bool) -> Guidance | None:
  """Return `guidance`, None if it would change nothing, or raise.

  `has_contrast` says whether dropping the label makes a weaker prediction.
  """
  weight, what, _, temperature = guidance
  if what not in ("", "a", "b", "ab"):
    raise ValueError(f"guide_what must be '', 'a', 'b' or 'ab', got {what!r}")
  for name, value in (("guidance", weight), ("attention_temperature", temperature)):
    if jnp.ndim(value) != 0:
      raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
  if is_concrete(weight) and not weight >= 0:
    raise ValueError(f"guidance must be at least 0, got {weight}")
  if is_concrete(temperature) and not temperature > 0:
    raise ValueError(f"attention_temperature must be above 0, got {temperature}")
  if not what or (is_concrete(weight) and weight == 0):
    return None
  if not has_contrast and is_concrete(temperature) and temperature == 1:
    raise ValueError(
      "guidance needs a contrast: labels (num_classes and cond), or an attention_temperature other "
      f"than 1, got guidance {weight} with neither"
    )
  return guidance
