"""Exploding inverses: what a conditional flow makes of measurements that it has not seen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from sklearn import metrics

from experiments.tasks._measurements import condition, unfamiliar
from experiments.tasks._scoring import spread
from normjax import diagnostics

_RIDGE = 1e-4  # a share of the mean variance: units that training never woke have none


def robustness(task: Any, model: Any, draws: int) -> dict[str, Any]:
  """Return how samples fare given held-out measurements and given others.

  A sample has exploded if a pixel is not finite or more than `config.largest` times as large as its
  measurement, both on the scale where pixels and usual measurements are on [-1, 1]; a measurement
  of more contrast may well have an image of more contrast. The spread of a measurement is the
  largest standard deviation of a pixel over its samples; it does not count that all samples are
  off in the same way, which networks that extrapolate linearly do whatever the maps of a flow are.

  The Mahalanobis score is that of the flow's features, pixels pooled as examples, against those of
  as many training images, averaged over the pixels of a measurement.

  Returns:
    `conditions`: for each kind of measurement the numbers of `samples` and of those `exploded`,
    `log10_spread` and `log10_spread_max`, the median and the largest over measurements, and
    `mahalanobis`, the median score. Over all kinds together: `spearman`, the rank correlation of
    score and spread, and `auroc`, how well the score tells which measurements have exploded
    samples, None where all have or none has.
  """
  config = task.config
  key, noise_key = jax.random.split(jax.random.key(config.seed + 3))
  image = spread(task.dataset.test, config.eval.conditions)["image"]
  y = jax.jit(task.measure)(image, key)
  sets = {"held out": y, **unfamiliar(y, noise_key)}

  @jax.jit
  def run(model, y, key):
    x = task.samples(model, y, key, draws)
    largest = jnp.max(jnp.abs(x), (2, 3, 4))
    # Scaled to at most 1 first: squares of what has exploded may overflow.
    unit = jnp.maximum(1.0, jnp.max(jnp.abs(x), 0))
    deviation = jnp.max(unit * jnp.std(x / unit[None], 0), (1, 2, 3))
    measured = jnp.maximum(1.0, jnp.max(jnp.abs(condition(y)), (1, 2, 3)))
    return ~(largest <= config.largest * measured[None]), deviation

  features = jax.jit(lambda model, y: model.features(condition(y)))
  train = spread(task.dataset.train, config.eval.conditions)["image"]
  known = features(model, task.measure(jnp.asarray(train), key))
  fit = diagnostics.fit_mahalanobis(known.reshape(-1, known.shape[-1]), ridge=_RIDGE)

  found, scores, spreads, bad = {}, [], [], []
  for name, conditions in sets.items():
    exploded, deviation = (np.asarray(v) for v in run(model, conditions, key))
    phi = features(model, conditions)
    score = diagnostics.mahalanobis_score(fit, phi.reshape(-1, phi.shape[-1]))
    score = np.asarray(score).reshape(len(phi), -1).mean(1)
    # What is not finite counts as the largest number there is.
    top = np.finfo(np.float32).max
    deviation = np.clip(np.nan_to_num(deviation, nan=top, posinf=top), 1e-12, top)
    found[name] = {
      "samples": exploded.size,
      "exploded": int(exploded.sum()),
      "log10_spread": float(np.median(np.log10(deviation))),
      "log10_spread_max": float(np.log10(deviation.max())),
      "mahalanobis": float(np.median(score)),
    }
    scores.append(score)
    spreads.append(deviation)
    bad.append(exploded.any(0))
  score, deviation, bad = (np.concatenate(v) for v in (scores, spreads, bad))
  both = 0 < bad.sum() < bad.size
  return {
    "conditions": found,
    "spearman": float(stats.spearmanr(score, deviation).statistic),
    "auroc": float(metrics.roc_auc_score(bad, score)) if both else None,
  }
