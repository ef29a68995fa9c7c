"""Unified normalization against the authors' code: outputs, states and gradients step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("unified_norm")
INPUTS = {"x", "g", "mask", "gamma", "beta", "x_eval", "lin_kernel", "lin_bias"}


def _is_input(array):
  return array.split("/")[-1] in INPUTS


def _options(meta):
  return dict(
    window=(meta["window_fwd"], meta["window_bwd"]),
    warmup_iters=meta["warmup_iters"],
    outlier_filtration=meta["outlier_filtration"],
    epsilon=meta["eps"],
    decay=meta["momentum"],
  )


def _unified_norm(case, meta):
  scale, bias, options = case["gamma"], case["beta"], _options(meta)
  c = scale.shape[0]

  @jax.jit
  def step(state, err, x, g, mask):
    f = lambda *args: norms.unified_norm(*args[:3], state, args[3], mask=mask, **options)
    y, vjp, state = jax.vjp(f, x, scale, bias, err, has_aux=True)
    dx, dscale, dbias, increments = vjp(g)
    return y, state, dx, dscale, dbias, jax.tree.map(jnp.add, err, increments)

  counter = jnp.zeros((), jnp.int32)
  state = (jnp.ones(c), jnp.zeros((meta["window_fwd"], c)), counter, counter)
  err, got = (jnp.zeros(c), jnp.zeros((meta["window_bwd"], c))), {}
  for i in range(meta["steps"]):
    now = {k.removeprefix(f"s{i}/"): v for k, v in case.items() if k.startswith(f"s{i}/")}
    if i == meta["jump_step"]:
      state = (*state[:2], jnp.full((), meta["jump_iters"], jnp.int32), state[3])
    mask = now["mask"] == 1 if "mask" in now else None
    y, state, dx, dscale, dbias, err = step(state, err, now["x"], now["g"], mask)
    new = dict(y=y, dx=dx, dgamma=dscale, dbeta=dbias, ema_gz=err[0], buffer_gz=err[1])
    new |= dict(running_var=state[0], buffer_x2=state[1], skip_counter=state[3][None])
    got |= {f"s{i}/{k}": v for k, v in new.items()}
  return got | _evaluation(case, options, state)


def _evaluation(case, options, state):
  """Return the output in evaluation, and that of a linear layer which the norm is folded into."""
  layer = norms.UnifiedNorm(
    len(case["gamma"]), param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options
  )
  values = dict(scale=case["gamma"], bias=case["beta"], phi=state[0])
  nnx.update(layer, {k: jnp.asarray(v) for k, v in values.items()})
  scale, shift = map(np.asarray, layer.evaluation_affine())
  kernel = scale[:, None] * case["lin_kernel"]
  return {
    "y_eval": jax.jit(lambda x: layer(x, use_running_average=True))(case["x_eval"]),
    "lin_out": case["x_eval"] @ kernel + (case["lin_bias"] + shift @ case["lin_kernel"]),
  }


@functools.cache
def _compute(name):
  got = _unified_norm(CASES[name], META["cases"][name])
  return {k: np.asarray(v) for k, v in got.items()}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if not _is_input(k)}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
