"""AdaIN and its kin, SPADE and FADE against numbers of the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_described,
  assert_matches,
  load_cases,
)

CASES, META = load_cases("adain_spade_tsit")


def _with_masks(case, meta):
  masks = {k: case[k] == 1 for k in ("content_mask", "style_mask") if k in case}
  assert bool(masks) == meta["masked"]
  norm = norms.feature_adaptive_instance_norm
  return functools.partial(norm, alpha=meta["alpha"], epsilon=meta["eps"], **masks)


def _cross_modal(case, meta):
  return functools.partial(norms.cross_modal_adaptive_instance_norm, epsilon=meta["eps"])


def _content_aware(case, meta):
  options = {k: meta[k] for k in ("content_weight", "style_weight")}
  return functools.partial(
    norms.content_aware_adaptive_instance_norm, epsilon=meta["eps"], **options
  )


ADAPTIVE = {
  "fadain": _with_masks,
  "cross_modal_adain": _cross_modal,
  "content_aware_adain": _content_aware,
}


def _adaptive(case, meta):
  norm = ADAPTIVE[meta["kind"]](case, meta)

  @jax.jit
  def run(content, style, g):
    y, vjp = jax.vjp(norm, content, style)
    return y, *vjp(g)

  return dict(zip(("y", "dcontent", "dstyle"), run(*map(case.get, INPUTS_ADAPTIVE)), strict=True))


def _convolutions(case, meta):
  shared = ("shared",) if meta["kind"] == "spade" else ()
  weights = {k: (case[f"{k}_kernel"], case[f"{k}_bias"]) for k in (*shared, "gamma", "beta")}
  # The kernels are exact in float32; their gradients are wider.
  weights = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), weights)
  assert all(kernel.shape[:2] == (meta["ks"],) * 2 for kernel, _ in weights.values())
  return weights


def _modulated(case, meta):
  norm = {"spade": norms.spade, "fade": norms.fade}[meta["kind"]]
  options = {
    "norm": meta["norm"],
    "epsilon": meta["eps"],
    "decay": 1 - meta["bn_momentum_torch"],
  }

  def forward(x, cond, weights, state, **mode):
    ordered = [weights[k] for k in ("shared", "gamma", "beta") if k in weights]
    return norm(x, cond, *ordered, state=state, **options, **mode)

  @jax.jit
  def step(x, cond, weights, state, g):
    f = lambda x, cond, weights: forward(x, cond, weights, state)
    y, vjp, state = jax.vjp(f, x, cond, weights, has_aux=True)
    return y, vjp(g), state

  weights, got = _convolutions(case, meta), {}
  c = case["s0/x"].shape[-1]
  state = (jnp.zeros(c), jnp.ones(c)) if meta["norm"] == "batch" else None
  for i in range(meta["steps"]):
    inputs = [case[f"s{i}/{k}"] for k in ("x", "cond")]
    y, (dx, dcond, dweights), state = step(*inputs, weights, state, case[f"s{i}/g"])
    step_got = {"y": y, "dx": dx, "dcond": dcond}
    for name, pair in dweights.items():
      step_got |= {f"d{name}_kernel": pair[0], f"d{name}_bias": pair[1]}
    if state is not None:
      step_got |= dict(zip(("running_mean", "running_var"), state, strict=True))
    got |= {f"s{i}/{k}": v for k, v in step_got.items()}
  evaluate = jax.jit(functools.partial(forward, use_running_average=True))
  got["y_eval"], kept = evaluate(case["x_eval"], case["cond_eval"], weights, state)
  assert jax.tree.all(jax.tree.map(np.array_equal, kept, state))
  return got


INPUTS_ADAPTIVE = ("content", "style", "g")
INPUTS = {
  *INPUTS_ADAPTIVE, "content_mask", "style_mask", "x", "cond", "x_eval", "cond_eval",
  *(f"{w}_{p}" for w in ("shared", "gamma", "beta") for p in ("kernel", "bias")),
}  # fmt: skip
# Recorded arrays that every case of a kind must hold.
ESSENTIAL = {"adaptive": {"y", "dcontent", "dstyle"}, "modulated": {"s0/y", "s0/dx", "y_eval"}}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if k.split("/")[-1] not in INPUTS}


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  run = _adaptive if meta["kind"] in ADAPTIVE else _modulated
  return {k: np.asarray(v) for k, v in run(CASES[name], meta).items()}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  recorded = _recorded(name)
  kind = "adaptive" if META["cases"][name]["kind"] in ADAPTIVE else "modulated"
  assert ESSENTIAL[kind] <= recorded.keys() <= _compute(name).keys()
  for array, expected in recorded.items():
    assert_matches(_compute(name)[array], expected, f"{name}/{array}")


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
