"""Attentive batch normalization against automatic differentiation of the same equations."""

import functools

import jax
import numpy as np
import pytest

from normjax import norms
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("attentive_batch_norm")
WEIGHTS = {
  "W_s": "summary_kernel",
  "b_s": "summary_bias",
  "W_e": "score_kernel",
  "b_e": "score_bias",
  "v": "score_vector",
  "W_gamma": "scale_kernel",
  "W_beta": "bias_kernel",
}
PARAMS = {*WEIGHTS, "gamma0", "beta0"}
INPUTS = {*PARAMS, "x", "a", "mask", "g", "x_eval", "a_eval", "mask_eval"}


@functools.cache
def _compute(name):
  case, meta = CASES[name], META["cases"][name]
  assert meta["layout"] == "(B,T,C)"
  params = {k: case[k] for k in PARAMS}
  options = {"scheme": meta["scheme"], "window": meta["window"], "decay": meta["decay"]}

  def f(params, x, a, mask, state, evaluates):
    return norms.attentive_batch_norm(
      x,
      a,
      {ours: params[theirs] for theirs, ours in WEIGHTS.items()},
      params["gamma0"],
      params["beta0"],
      state,
      mask=mask,
      use_running_average=evaluates,
      epsilon=meta["eps"],
      **options,
    )

  @jax.jit
  def train(params, x, a, mask, state, g):
    y, vjp, state = jax.vjp(lambda *args: f(*args, mask, state, False), params, x, a, has_aux=True)
    dparams, dx, da = vjp(g)
    got = {"y": y, "dx": dx, "da": da} | {f"d{k}": v for k, v in dparams.items()}
    return got | dict(zip(("running_mean", "running_var"), state, strict=True)), state

  c = case["gamma0"].shape[0]
  state = (np.zeros(c), np.ones(c))
  got = {}
  for i in range(meta["steps"]):
    x, a, mask, g = (case[f"s{i}/{k}"] for k in ("x", "a", "mask", "g"))
    step, state = train(params, x, a, mask == 1, state, g)
    got.update({f"s{i}/{k}": np.asarray(v) for k, v in step.items()})
  evaluate = jax.jit(lambda *args: f(*args, True)[0])
  inputs = (case["x_eval"], case["a_eval"], case["mask_eval"] == 1)
  return got | {"y_eval": np.asarray(evaluate(params, *inputs, state))}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if k.split("/")[-1] not in INPUTS}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
