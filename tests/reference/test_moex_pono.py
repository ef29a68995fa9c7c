"""Positional norm, moment shortcut and moment exchange against the authors' code in float64."""

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

CASES, META = load_cases("moex_pono")


def _pono(case, meta):
  @jax.jit
  def run(x, h):
    def loss(x, h):
      y, mean, std = norms.positional_norm(x, epsilon=meta["eps"])
      z = norms.moment_shortcut(h, mean, std)
      return (y * case["g"]).sum() + (z * case["g2"]).sum(), (y, mean, std, z)

    (dx, dh), outputs = jax.grad(loss, (0, 1), has_aux=True)(x, h)
    return dict(zip(("y", "mean", "std", "z"), outputs, strict=True), dx=dx, dh=dh)

  return run(case["x"], case["h"])


def _moex(case, meta):
  @jax.jit
  def run(x, perm):
    exchange = functools.partial(
      norms.moment_exchange,
      norm_type=meta["norm_type"],
      epsilon=meta["eps"],
      positive_only=meta["positive_only"],
    )
    y, vjp = jax.vjp(lambda x: exchange(x, perm), x)
    return {"y": y, "dx": vjp(case["g"])[0]}

  return run(case["x"], case["swap_index"])


def _label_mix(case, meta):
  @jax.jit
  def run(logits, labels, perm):
    loss = lambda logits: norms.moment_exchange_loss(logits, labels, perm, meta["lam"])
    return dict(zip(("loss", "dlogits"), jax.value_and_grad(loss)(logits), strict=True))

  return run(case["logits"], case["labels"], case["swap_index"])


KINDS = {"pono": _pono, "moex": _moex, "label_mix": _label_mix}
INPUTS = {"x", "h", "g", "g2", "swap_index", "logits", "labels"}


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  assert meta.get("layout", "NHWC") == "NHWC", "ours are channels last"
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
