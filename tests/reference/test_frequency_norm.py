"""PCNorm, CCNorm and SCNorm against numbers of the authors' code."""

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

CASES, META = load_cases("frequency_norm")
INPUTS = {"gamma", "beta", "cc_logits", "h", "x", "g", "x_eval", "g_eval"}
NAMES = {"gamma": "scale", "beta": "bias", "cc_logits": "logits", "h": "logits"}


def _norm(meta, method):
  """Return `f(x, params, state, evaluates) -> (y, state)` of a case."""
  kind, decay = meta["kind"], 1 - meta["momentum_torch"]
  options = {"epsilon": meta["eps"], "method": method}

  def f(x, params, state, evaluates):
    params = {NAMES[name]: value for name, value in params.items()}
    if kind == "sc":
      return norms.sc_norm(x, **params, temperature=meta["sc_temperature"], **options), state
    norm = norms.pc_norm
    if kind == "cc":
      norm = functools.partial(norms.cc_norm, temperature=meta["cc_temperature"])
    return norm(x, **params, state=state, use_running_average=evaluates, decay=decay, **options)

  return f


@functools.cache
def _compute(name, method="fft"):
  case, meta = CASES[name], META["cases"][name]
  assert meta["kind"] in ("pc", "cc", "sc"), f"{name}: kind {meta['kind']!r} has no check"
  assert meta["layout"] == "NHWC"
  f = _norm(meta, method)
  params = {k: case[k] for k in NAMES if k in case}

  @functools.partial(jax.jit, static_argnums=4)
  def step(x, params, state, g, evaluates):
    y, vjp, new = jax.vjp(lambda x, p: f(x, p, state, evaluates), x, params, has_aux=True)
    return y, vjp(g), new

  got = {}

  def run(x, g, state, wanted, evaluates=False):
    y, (dx, dparams), state = step(x, params, state, g, evaluates)
    values = {"y": y, "dx": dx} | {f"d{k}": v for k, v in dparams.items()}
    got.update({wanted(k): np.asarray(v) for k, v in values.items()})
    return state

  c = case["gamma"].shape[0]
  state = (np.zeros(c), np.ones(c))
  if meta["kind"] == "sc":
    run(case["x"], case["g"], state, lambda k: k)
    return got
  for i in range(sum(k.endswith("/x") for k in case)):
    x, g = case[f"s{i}/x"], case[f"s{i}/g"]
    state = run(x, g, state, lambda k, i=i: f"s{i}/{k}")
    got[f"s{i}/running_mean"], got[f"s{i}/running_var"] = map(np.asarray, state)
  run(case["x_eval"], case["g_eval"], state, lambda k: f"{k}_eval", evaluates=True)
  return {k: v for k, v in got.items() if not k.endswith("_eval") or k in ("y_eval", "dx_eval")}


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


@pytest.mark.parametrize("name", sorted(CASES))
def test_closed_form_is_the_same_but_for_the_mean_that_the_floor_leaves(name):
  case, meta, got = CASES[name], META["cases"][name], _compute(name, "closed_form")
  allowed = {}
  if meta["kind"] == "sc":
    # Of each mean w_0 * sqrt(1e-5) / (h * w) is left; it is constant, and adds nothing to dx.
    left = np.sqrt(1e-5) / np.prod(case["x"].shape[1:3])
    total = np.sum(np.abs(case["g"]))
    widest = left * np.max(np.abs(case["gamma"]))
    allowed = {"y": widest, "dgamma": left * total, "dh": widest * total / meta["sc_temperature"]}
  for array, expected in _recorded(name).items():
    error = np.max(np.abs(got[array] - expected))
    assert error <= allowed.get(array, 1e-9 * max(1.0, np.max(np.abs(expected)))), array
