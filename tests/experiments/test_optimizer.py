import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.common import density_config
from experiments.optimizer import make_optimizer, schedule

TOTAL = 20


def optimizer(**changes):
  config = density_config().optimizer
  config.update(changes)
  return make_optimizer(config, TOTAL)


def gradients(step):
  return {"a": np.float32([3.0, -4.0]) * (step + 1), "b": np.float32([[0.5, 0.25, -2.0]])}


def steps(optimizer, params, count):
  """Return the updates of `count` steps from `params`, which move along."""
  state, updates = optimizer.init(params), []
  for step in range(count):
    update, state = optimizer.update(gradients(step), state, params)
    params = jax.tree.map(jnp.add, params, update)
    updates.append(update)
  return updates, state


def test_schedule_rises_linearly_then_falls_along_a_half_cosine():
  factor = schedule(TOTAL, 0.2)
  found = [float(factor(step)) for step in (0, 1, 2, 4, 12, 20, 30)]
  np.testing.assert_allclose(found, [0, 0.25, 0.5, 1, 0.5, 0, 0], atol=1e-7)


def test_schedule_without_warm_up_starts_at_one():
  factor = schedule(TOTAL, 0.0)
  np.testing.assert_allclose([factor(0), factor(10), factor(20)], [1, 0.5, 0], atol=1e-7)


def test_updates_are_those_of_the_recipe():
  params = {"a": np.float32([1.0, 2.0]), "b": np.float32([[-1.0, 0.5, 0.0]])}
  lr, b1, b2, decay, clip = 0.1, 0.9, 0.95, 0.01, 1.0
  made = optimizer(lr=lr, weight_decay=decay, clip=clip, warmup=0.1)
  updates, _ = steps(made, params, 4)
  p = {k: np.float64(v) for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in p.items()}
  v = {k: np.zeros_like(v) for k, v in p.items()}
  for t in range(4):
    g = {k: np.float64(x) for k, x in gradients(t).items()}
    norm = np.sqrt(sum((x**2).sum() for x in g.values()))
    s = t / 2 if t < 2 else 0.5 * (1 + np.cos(np.pi * (t - 2) / 18))
    for k in p:
      clipped = g[k] * min(1.0, clip / norm)
      m[k] = b1 * m[k] + (1 - b1) * clipped
      v[k] = b2 * v[k] + (1 - b2) * clipped**2
      adam = (m[k] / (1 - b1 ** (t + 1))) / (np.sqrt(v[k] / (1 - b2 ** (t + 1))) + 1e-8)
      expected = -s * (lr * adam + decay * p[k])
      np.testing.assert_allclose(updates[t][k], expected, rtol=2e-5, atol=1e-7)
      p[k] = p[k] + expected


def test_decay_does_not_depend_on_the_learning_rate():
  params = {"a": np.float32([1.0, 2.0]), "b": np.float32([[-1.0, 0.5, 0.0]])}
  updates, _ = steps(optimizer(lr=0.0, weight_decay=0.5, warmup=0.0), params, 1)
  jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.5 * p), updates[0], params)


@pytest.mark.parametrize("mu_dtype", ["float32", "bfloat16"])
def test_the_first_moment_may_be_small_and_the_second_never_is(mu_dtype):
  params = {"a": np.float32([1.0, 2.0]), "b": np.float32([[-1.0, 0.5, 0.0]])}
  updates, state = steps(optimizer(mu_dtype=mu_dtype), params, 1)
  (adam,) = [part for part in state if hasattr(part, "mu")]
  assert {x.dtype for x in jax.tree.leaves(adam.mu)} == {jnp.dtype(mu_dtype)}
  assert {x.dtype for x in jax.tree.leaves((adam.nu, updates))} == {jnp.dtype("float32")}
