"""Flows of other libraries, trained on the same arrays in the same way: "flowjax/maf" and so on.

Both libraries are optional, see `requirements-bench.txt`. Options are arguments of their own
constructors.
"""

import importlib.util
import math
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import data
from experiments.optimizer import make_optimizer, schedule


def library(name: str) -> str | None:
  """Return the library that a row of a grid names; None for a flow of our own."""
  first, _, flow = name.partition("/")
  return first if flow and first in _LIBRARIES else None


def available(name: str) -> bool:
  """Return whether the library of a row is installed."""
  return importlib.util.find_spec(library(name) or name) is not None


def make_points(name: str, options: dict[str, Any], config: ConfigDict, points: int):
  """Return `run(arrays, lr, seed)`, which yields at each of `points` points of a curve.

  It yields step, mean loss since the last one, whether each was finite, the mean of -log p of
  validation and of test rows, and the number of parameters.
  """
  make, flow = _LIBRARIES[library(name)], name.partition("/")[2]
  return make(flow, options, config, points)


def _orders(config: ConfigDict, rows: int, points: int, seed: int) -> list[np.ndarray]:
  batches = data.batches({"index": np.arange(rows)}, config.batch_size, seed)
  order = np.stack([next(batches)["index"] for _ in range(config.total_steps)])
  return np.split(order, points)


def _flowjax(name: str, options: dict[str, Any], config: ConfigDict, points: int):
  import equinox as eqx
  import jax
  import jax.numpy as jnp
  import optax
  import paramax
  from flowjax import bijections, distributions, flows

  def build(dim, seed):
    base, key = distributions.Normal(jnp.zeros(dim)), jax.random.key(seed)
    if name == "maf":
      return flows.masked_autoregressive_flow(key, base_dist=base, **options)
    spline = bijections.RationalQuadraticSpline(
      knots=options["knots"], interval=options["interval"]
    )
    rest = {k: v for k, v in options.items() if k not in ("knots", "interval")}
    return flows.coupling_flow(key, base_dist=base, transformer=spline, **rest)

  data.check_name("a flow of flowjax", name, ("maf", "rqs_coupling"))
  fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)
  divide = lambda model: eqx.partition(model, eqx.is_inexact_array, is_leaf=fixed)
  compiled = {}

  def make(static, steps):
    def nats(params, x):
      return -paramax.unwrap(eqx.combine(params, static)).log_prob(x).mean()

    @jax.jit
    def advance(params, state, lr, order, rows):
      optimizer = make_optimizer(config.optimizer, steps, lr)

      def step(carry, chosen):
        params, state = carry
        loss, gradients = jax.value_and_grad(nats)(params, rows[chosen])
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

      (params, state), losses = jax.lax.scan(step, (params, state), order)
      return params, state, losses

    return advance, jax.jit(nats)

  def run(arrays, lr, seed):
    train, validation, test = (jnp.asarray(arrays[k]["x"]) for k in ("train", "validation", "test"))
    params, static = divide(build(train.shape[1], seed))
    # The layers' structure does not depend on the seed, their constants may (permutations).
    advance, nats = compiled.setdefault(seed, make(static, config.total_steps))
    state = make_optimizer(config.optimizer, config.total_steps, lr).init(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    step = 0
    for order in _orders(config, len(train), points, seed):
      params, state, losses = advance(params, state, jnp.float32(lr), order, train)
      step += len(order)
      losses, scores = np.asarray(losses), [float(nats(params, x)) for x in (validation, test)]
      yield step, float(losses.mean()), bool(np.isfinite(losses).all()), *scores, size

  return run


def _zuko(name: str, options: dict[str, Any], config: ConfigDict, points: int):
  import torch
  import zuko

  data.check_name("a flow of zuko", name, ("maf", "nsf"))
  torch.set_num_threads(1)

  def run(arrays, lr, seed):
    torch.manual_seed(seed)
    train, validation, test = (
      torch.as_tensor(arrays[k]["x"]) for k in ("train", "validation", "test")
    )
    flow = {"maf": zuko.flows.MAF, "nsf": zuko.flows.NSF}[name](train.shape[1], **options)
    parameters = list(flow.parameters())
    betas = (config.optimizer.b1, config.optimizer.b2)
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas)
    factor = schedule(config.total_steps, config.optimizer.warmup)
    rates = np.asarray([float(factor(i)) for i in range(config.total_steps + 1)])
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rates[i])
    step = 0
    for order in _orders(config, len(train), points, seed):
      losses = []
      for chosen in order:
        optimizer.zero_grad()
        loss = -flow().log_prob(train[torch.as_tensor(chosen)]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
        optimizer.step()
        decay.step()
        losses.append(loss.item())
      step += len(order)
      with torch.no_grad():
        scores = [-flow().log_prob(rows).mean().item() for rows in (validation, test)]
      size = sum(p.numel() for p in parameters)
      yield step, float(np.mean(losses)), all(map(math.isfinite, losses)), *scores, size

  return run


_LIBRARIES = {"flowjax": _flowjax, "zuko": _zuko}
