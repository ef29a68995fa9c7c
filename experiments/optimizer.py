"""The optimizer of Jet's recipe, assembled from optax.

update = -s(t) (lr * adam(clip(g)) + weight_decay * p): the decay is scaled by the schedule s but
not by the learning rate. s(t) rises linearly over the warm-up, then falls along half a cosine.
"""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict


def schedule(total_steps: int, warmup: float) -> optax.Schedule:
  """Return s(t): linear warm-up over the first `warmup` of the steps, times a half-cosine."""
  warmup_steps = warmup * total_steps

  def factor(step):
    rise = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0
    progress = jnp.clip((step - warmup_steps) / max(1.0, total_steps - warmup_steps), 0.0, 1.0)
    return rise * 0.5 * (1 + jnp.cos(jnp.pi * progress))

  return factor


def make_optimizer(
  config: ConfigDict, total_steps: int, lr: ArrayLike | None = None
) -> optax.GradientTransformation:
  """Build the optimizer that `config` (keys lr, b1, b2, clip, ...) describes.

  Args:
    config: its keys.
    total_steps: length of the schedule.
    lr: learning rate, possibly traced, in place of the config's.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=1e-8, mu_dtype=config.mu_dtype),
    optax.scale(config.lr if lr is None else lr),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_schedule(schedule(total_steps, config.warmup)),
    optax.scale(-1.0),
  )
