"""Online Normalization against numbers recorded from its authors' code: streams of steps."""

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

CASES, META = load_cases("online_norm")
INPUTS = {"x", "g", "gamma", "beta", "x_eval"}


def _is_output(name):
  return name.split("/")[-1] not in INPUTS


def _options(meta):
  return {
    "decay": meta["alpha_fwd"],
    "backward_decay": meta["alpha_bkw"],
    "epsilon": meta["eps"],
    "ecm": None if meta["error_compensation"] == "none" else meta["error_compensation"],
    "clamp_value": meta["clamp_value"],
    "ls_epsilon": meta["ls_eps"],
  }


@functools.cache
def _compute(name, method):
  case, meta = CASES[name], META["cases"][name]
  space = meta["layout"].removeprefix("N").removesuffix("C")
  assert case["s0/x"].ndim == 2 + len(space)
  assert ("gamma" in case) == ("beta" in case) == meta["affine"]
  norm = functools.partial(norms.online_norm, method=method, **_options(meta))
  affine = (case.get("gamma"), case.get("beta"))

  @jax.jit
  def step(x, g, state, control):
    # Without an affine these inputs are None, and so are their gradients.
    f = lambda x, affine, control: norm(x, *affine, state, control)
    y, vjp, new = jax.vjp(f, x, affine, control, has_aux=True)
    dx, (dgamma, dbeta), increments = vjp(g)
    return y, new, dx, dgamma, dbeta, jax.tree.map(jnp.add, control, increments)

  c = case["s0/x"].shape[-1]
  state, control, got = (jnp.zeros(c), jnp.ones(c)), (jnp.zeros(c), jnp.zeros(c)), {}
  for i in range(meta["steps"]):
    y, state, dx, dgamma, dbeta, control = step(case[f"s{i}/x"], case[f"s{i}/g"], state, control)
    names = ("y", "mu", "var", "dx", "dgamma", "dbeta", "u", "v")
    values = (y, *state, dx, dgamma, dbeta, *control)
    got |= {f"s{i}/{k}": np.asarray(v) for k, v in zip(names, values, strict=True) if v is not None}
  evaluate = jax.jit(functools.partial(norm, use_running_average=True))
  got["y_eval"] = np.asarray(evaluate(case["x_eval"], *affine, state, control)[0])
  return got


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if _is_output(k)}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("method", ["scan", "associative"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name, method):
  assert_case_matches(_compute(name, method), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name, "scan"), _recorded(name), name)
