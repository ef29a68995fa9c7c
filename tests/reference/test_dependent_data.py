"""Likelihoods of dependent data against the authors' code and dense Gaussian densities."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("dependent_data")
GIVEN = r"z|loc|block_id|relationship|raw_(rho|lambda)|batch\d+_indices"


def _activation(words):
  """Return the map of the raw parameter that the file describes in words."""
  if words == "sigmoid":
    return flows.sigmoid_correlation
  bound, limits = re.fullmatch(
    r"hardsigmoid-([\d.]+)(?: clipped to \[0, ([\d.]+)\])?", words
  ).groups()
  margin = 0.0 if limits is None else 1 - float(limits)
  return functools.partial(flows.hard_sigmoid_correlation, bound=float(bound), margin=margin)


def _batches(arrays):
  return {
    name.split("_")[0]: jnp.asarray(value)
    for name, value in arrays.items()
    if name.endswith("_indices")
  }


def _blocks(arrays, activation):
  block_id = jnp.asarray(arrays["block_id"])
  sizes = np.bincount(arrays["block_id"])

  def log_probs(raw, z, index=None):
    return flows.block_log_prob(z - loc, block_id, activation(raw), index=index)

  raw, z, loc = (jnp.asarray(arrays[name]) for name in ("raw_rho", "z", "loc"))
  loc = loc[None]
  rho = activation(raw)
  same = arrays["block_id"][:, None] == arrays["block_id"][None]
  cov = np.where(same, np.asarray(rho)[arrays["block_id"]][:, None], 0)
  np.fill_diagonal(cov, 1)
  assert sizes.sum() == len(z)

  def objective(reduce, index=None):
    def loss(raw, z):
      values = log_probs(raw, z, index)
      return reduce(values), values

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

  (draw, dz), values = objective(jnp.sum)(raw, z)
  results = {
    "rho": rho, "cov": cov, "log_prob_joint": jnp.sum(values),
    "log_prob_per_sample_full": values, "dz": dz, "draw_rho": draw,
  }  # fmt: skip
  for batch, index in _batches(arrays).items():
    (draw, dz), values = objective(jnp.mean, index)(raw, z[index])
    results |= {f"{batch}_log_prob": values, f"{batch}_dz": dz, f"{batch}_draw_rho": draw}
  return results


def _relations(arrays, activation):
  relationship = flows.decompose_relationship(arrays["relationship"])
  raw, z, loc = (jnp.asarray(arrays[name]) for name in ("raw_lambda", "z", "loc"))
  loc = loc[None]

  def rotated(raw):
    eigenvalues, vectors = relationship
    return flows.rotated_log_prob(vectors.T @ (z - loc), eigenvalues, activation(raw)) / len(z)

  def loss(z, reduce, index=None):
    values = flows.relationship_log_prob(z - loc, relationship, activation(raw), index=index)
    return reduce(values), values

  gradient = lambda *rest: jax.jit(jax.grad(lambda z: loss(z, *rest), has_aux=True))
  mean, draw = jax.jit(jax.value_and_grad(rotated))(raw)
  dz, values = gradient(jnp.sum)(z)
  results = {
    "lambda": activation(raw), "log_prob_joint": jnp.sum(values), "log_prob_over_n": mean,
    "draw_lambda": draw, "log_prob_per_sample_full": values, "dz": dz,
  }  # fmt: skip
  for batch, index in _batches(arrays).items():
    dz, values = gradient(jnp.mean, index)(z[index])
    results |= {f"{batch}_log_prob": values, f"{batch}_dz": dz}
  return results


@functools.cache
def _computed(case):
  arrays, meta = CASES[case], META["cases"][case]
  if "block_id" in arrays:
    return _blocks(arrays, _activation(meta["rho activation"]))
  return _relations(arrays, _activation(meta["lambda activation"]))


def _recorded(case):
  return {k: v for k, v in CASES[case].items() if not re.fullmatch(GIVEN, k)}


def test_the_file_describes_its_cases():
  assert_described(CASES, META)


@pytest.mark.parametrize("case", CASES)
def test_matches_the_recorded_arrays(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_notices_altered_arrays(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
