"""Dynamic Tanh, elementwise layer norm and Derf against recorded numbers.

Sources: the authors' DynamicTanh, a float64 oracle for the others and for exact relations.
"""

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
  assert_matches,
  load_cases,
)

CASES, META = load_cases("dyt_eln")

# Recorded names of learned arrays -> our arguments.
NAMES = {"x": "x", "gamma": "scale", "beta": "bias", "alpha": "alpha", "s": "shift", "b": "b"}


def _layer(norm, case, **options):
  inputs = {name: case[name] for name in NAMES if name in case}

  @jax.jit
  def run(inputs):
    f = lambda v: norm(**{NAMES[name]: value for name, value in v.items()}, **options)
    y, vjp = jax.vjp(f, inputs)
    return y, vjp(case["g"])[0]

  y, grads = run(inputs)
  return {"y": y} | {f"d{name}": grad for name, grad in grads.items()}


def _relation(case, meta):
  """Layer and RMS norm of channel 0 as elementwise layer norms with the others' moments for b."""
  del meta
  x = jnp.asarray(case["x"])
  c, others = x.shape[1], x[:, 1:]
  mean = jnp.mean(others, 1)
  b_ln, b_rms = c * jnp.var(others, axis=1), jnp.sum(others**2, 1)

  @functools.partial(jax.jit, static_argnums=2)
  def eln(values, b, bound):
    row = lambda v, b: norms.elementwise_layer_norm(v * jnp.ones(c), b, bound=bound)[0]
    return jax.vmap(row)(values, b)

  got = {
    "mu_others": mean,
    "b_ln": b_ln,
    "b_rms": b_rms,
    "ln": eln(x[:, 0] - mean, b_ln, "sqrt_c_minus_1"),
    "rms": eln(x[:, 0], b_rms, "sqrt_c"),
  }
  for name, norm in (("ln", norms.layer_norm), ("rms", norms.rms_norm)):
    np.testing.assert_allclose(got[name], norm(x, epsilon=0.0)[:, 0], rtol=0, atol=1e-12)
  return got


KINDS = {
  "dyt": lambda case, meta: _layer(norms.dynamic_tanh, case),
  "eln": lambda case, meta: _layer(norms.elementwise_layer_norm, case, bound=meta["bound"]),
  "derf": lambda case, meta: _layer(norms.dynamic_erf, case),
  "exact_relation": _relation,
}
INPUTS = {*NAMES, "g"}


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  return {k: np.asarray(v) for k, v in KINDS[meta["kind"]](CASES[name], meta).items()}


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


@pytest.mark.parametrize("name", sorted(n for n, m in META["cases"].items() if "alpha_init" in m))
def test_recorded_alpha_is_the_initial_one_of_the_module(name):
  case, alpha = CASES[name], META["cases"][name]["alpha_init"]
  module = norms.DynamicTanh(
    case["x"].shape[-1], alpha_init=alpha, param_dtype="float64", rngs=nnx.Rngs(0)
  )
  assert_matches(module.alpha[...], case["alpha"], f"{name}/alpha")
