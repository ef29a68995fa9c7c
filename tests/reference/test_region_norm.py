"""Region Normalization against numbers of the authors' code."""

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

CASES, META = load_cases("region_norm")

# The authors' names of our arguments.
BASIC = {
  f"{region}_{theirs}": f"{region}_{ours}"
  for region in ("foreground", "background")
  for theirs, ours in (("gamma", "scale"), ("beta", "bias"))
}
LEARNED = ("conv1_kernel", "gamma_kernel", "gamma_bias", "beta_kernel", "beta_bias")


def _basic(case, meta):
  assert (not case["mask"].any()) == (meta["empty"] == "zero")

  def norm(x, params):
    params = {BASIC[k]: v for k, v in params.items()}
    return norms.region_norm(x, case["mask"], epsilon=meta["eps"], **params)

  return norm, BASIC, {}


def _learned(case, meta):
  threshold = meta["threshold"]
  importance = jax.jit(norms.region_importance)(case["x"], case["conv1_kernel"])
  np.testing.assert_allclose(np.mean(importance >= threshold), meta["fraction_above_threshold"])

  def norm(x, params):
    scale, bias = ((params[f"{k}_kernel"], params[f"{k}_bias"]) for k in ("gamma", "beta"))
    return norms.learnable_region_norm(
      x, params["conv1_kernel"], scale, bias, threshold=threshold, epsilon=meta["eps"]
    )

  return norm, LEARNED, {"importance": importance}


KINDS = {"rn_b": _basic, "rn_l": _learned}
INPUTS = {"x", "mask", "g", *BASIC, *LEARNED}


@functools.cache
def _compute(name):
  case, meta = CASES[name], META["cases"][name]
  norm, names, got = KINDS[meta["kind"]](case, meta)

  @jax.jit
  def run(x, params, g):
    y, vjp = jax.vjp(norm, x, params)
    return y, vjp(g)

  params = {k: jnp.asarray(case[k]) for k in names}
  y, (dx, dparams) = run(case["x"], params, case["g"])
  got |= {"y": y, "dx": dx} | {f"d{k}": v for k, v in dparams.items()}
  return {k: np.asarray(v) for k, v in got.items()}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if k not in INPUTS}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
