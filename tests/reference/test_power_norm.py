"""Power normalization against the authors' code: outputs, states and gradients step by step.

PN-V is compared with the automatic derivative of its definition.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("power_norm")
INPUTS = {"x", "g", "mask", "gamma", "beta", "x_eval", "g_eval"}


def _is_input(array):
  return array.split("/")[-1] in INPUTS


def _options(meta):
  return dict(
    num_groups=meta["group_num"],
    warmup_iters=meta["warmup_iters"],
    epsilon=meta["eps"],
    group_epsilon=meta["group_eps"],
    decay=meta["alpha_fwd"],
    backward_decay=meta["alpha_bkw"],
  )


def _power_norm(case, meta):
  scale, bias, options = case["gamma"], case["beta"], _options(meta)

  @jax.jit
  def step(state, err, x, g, mask):
    f = lambda *args: norms.power_norm(*args[:3], state, args[3], mask=mask, **options)
    y, vjp, state = jax.vjp(f, x, scale, bias, err, has_aux=True)
    dx, dscale, dbias, increment = vjp(g)
    return y, state, dx, dscale, dbias, err + increment

  state, err, got = (jnp.ones(scale.shape), jnp.zeros((), jnp.int32)), jnp.zeros(scale.shape), {}
  for i in range(meta["steps"]):
    now = {k.removeprefix(f"s{i}/"): v for k, v in case.items() if k.startswith(f"s{i}/")}
    assert (now["x"].ndim == 2) == meta["two_d"]
    mask = now["mask"] == 1 if "mask" in now else None
    y, state, dx, dscale, dbias, err = step(state, err, now["x"], now["g"], mask)
    new = dict(y=y, running_phi=state[0], dx=dx, dgamma=dscale, dbeta=dbias, ema_gz=err)
    got |= {f"s{i}/{k}": v for k, v in new.items()}
    assert state[1] == i + 1

  @jax.jit
  def evaluate(x, g):
    f = lambda x: norms.power_norm(x, scale, bias, state, use_running_average=True, **options)
    y, vjp, kept = jax.vjp(f, x, has_aux=True)
    return y, vjp(g)[0], kept

  got["y_eval"], got["dx_eval"], kept = evaluate(case["x_eval"], case["g_eval"])
  np.testing.assert_array_equal(kept[0], state[0])
  return got


def _power_norm_v(case, meta):
  @jax.jit
  def run(x, scale, bias, g):
    f = lambda *args: norms.power_norm_v(*args, epsilon=meta["eps"])[0]
    y, vjp = jax.vjp(f, x, scale, bias)
    return y, *vjp(g)

  got = run(case["x"], case["gamma"], case["beta"], case["g"])
  return dict(zip(("y", "dx", "dgamma", "dbeta"), got, strict=True))


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  run = _power_norm_v if meta["variant"].startswith("PN-V") else _power_norm
  return {k: np.asarray(v) for k, v in run(CASES[name], meta).items()}


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
