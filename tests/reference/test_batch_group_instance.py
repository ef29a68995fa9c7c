"""Batch, group and instance norm and batch renormalization against recorded numbers.

Sources: torch on the valid rows, and for batch renormalization a float64 oracle.
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

CASES, META = load_cases("batch_group_instance")


def _with_grads(f, arrays, affine):
  """Return y, dx, dscale and dbias of sum(y * g), and what `f(x, scale, bias)` returns beside."""
  inputs = [arrays["x"], *affine]

  @jax.jit
  def run(*inputs):
    y, vjp, aux = jax.vjp(f, *inputs, has_aux=True)
    return y, vjp(arrays["g"]), aux

  y, grads, aux = run(*inputs)
  names = [name for name, v in zip(("dx", "dscale", "dbias"), inputs, strict=True) if v is not None]
  return {"y": y} | dict(zip(names, [g for g in grads if g is not None], strict=True)), aux


def _affine(case, meta):
  assert (("scale" in case), ("bias" in case)) == (meta["affine"],) * 2
  return case.get("scale"), case.get("bias")


def _steps(case, meta):
  """Return the arrays of each step, without the prefix of the step."""
  steps = [
    {k.split("/")[1]: v for k, v in case.items() if k.startswith(f"s{i}/")}
    for i in range(meta["steps"])
  ]
  assert sum(map(len, steps)) == sum("/" in k for k in case)
  return steps


def _evaluation(norm, case, state, affine, **options):
  f = lambda x, *affine: norm(x, *affine, state, use_running_average=True, **options)
  given = {"x": case["x_eval"], "g": case.get("g_eval", np.ones_like(case["x_eval"]))}
  got, after = _with_grads(f, given, affine)
  jax.tree.map(np.testing.assert_array_equal, after, state)
  return {f"{name}_eval": got[name] for name in ("y", "dx") if f"{name}_eval" in case}


def _batch_norm(case, meta):
  np.testing.assert_allclose(meta["decay"], 1 - meta["momentum_torch"], rtol=1e-12)
  affine, got = _affine(case, meta), {}
  options = {"epsilon": meta["eps"], "decay": meta["decay"], "masked_output": "zero"}
  c = case["x_eval"].shape[-1]
  states = {"unbiased": (jnp.zeros(c), jnp.ones(c)), "biased": (jnp.zeros(c), jnp.ones(c))}

  for i, arrays in enumerate(_steps(case, meta)):
    assert ("mask" in arrays) == meta["masked"]
    mask = arrays["mask"] == 1 if meta["masked"] else None

    def train(x, scale, bias, mask=mask, states=states):
      run = functools.partial(norms.batch_norm, x, scale, bias, mask=mask, **options)
      after = {name: run(old, var_estimator=name) for name, old in states.items()}
      return after["unbiased"][0], {name: state for name, (_, state) in after.items()}

    step, states = _with_grads(train, arrays, affine)
    np.testing.assert_array_equal(states["unbiased"][0], states["biased"][0])
    step["running_mean"], step["running_var"] = states["unbiased"]
    step["running_var_biased"] = states["biased"][1]
    got |= {f"s{i}/{name}": value for name, value in step.items()}
  return got | _evaluation(norms.batch_norm, case, states["unbiased"], affine, epsilon=meta["eps"])


def _batch_renorm(case, meta):
  affine, got = _affine(case, meta), {}
  options = {"epsilon": meta["eps"], "decay": 1 - meta["alpha"]}
  limits = {"r_max": meta["r_max"], "d_max": meta["d_max"]}
  c = case["x_eval"].shape[-1]
  state = (jnp.zeros(c), jnp.ones(c), jnp.zeros((), jnp.int32))
  for i, arrays in enumerate(_steps(case, meta)):

    def train(x, scale, bias, state=state):
      renorm = functools.partial(norms.batch_renorm, x, state=state, **options)
      y, new = renorm(scale, bias, **limits)
      # y = plain * r + d without scale and bias, and the batch mean of plain is 0.
      positions = tuple(range(x.ndim - 1))
      corrected, plain = renorm(**limits)[0], renorm(r_max=1, d_max=0)[0]
      r = jnp.std(corrected, positions) / jnp.std(plain, positions)
      return y, (new, r, jnp.mean(corrected, positions))

    step, (state, step["r"], step["d"]) = _with_grads(train, arrays, affine)
    step["mu"], step["sigma"], count = state
    assert count == i + 1
    got |= {f"s{i}/{name}": value for name, value in step.items()}
  return got | _evaluation(norms.batch_renorm, case, state, affine, **options)


def _per_example(norm, options):
  def run(case, meta):
    keywords = {"epsilon": meta["eps"]} | {name: meta[name] for name in options}
    f = lambda x, *affine: (norm(x, *affine, **keywords), None)
    return _with_grads(f, case, _affine(case, meta))[0]

  return run


KINDS = {
  "batch_norm": _batch_norm,
  "batch_renorm": _batch_renorm,
  "group_norm": _per_example(norms.group_norm, ["num_groups"]),
  "instance_norm": _per_example(norms.instance_norm, []),
}
INPUTS = {"x", "g", "mask", "scale", "bias", "x_eval", "g_eval"}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if k.split("/")[-1] not in INPUTS}


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  assert meta["kind"] in KINDS, f"{name}: kind {meta['kind']!r} has no reference check"
  return {k: np.asarray(v) for k, v in KINDS[meta["kind"]](CASES[name], meta).items()}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
