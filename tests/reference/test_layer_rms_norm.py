"""Layer, RMS, CRMS, scale and fix norm and the pre-normalizer against recorded numbers.

Sources: torch, the code of the RMSNorm, CRMSNorm and ScaleNorm authors, and a float64 oracle for
the pre-normalizer.
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

CASES, META = load_cases("layer_rms_norm")


def _outputs_and_grads(f, inputs, cotangent):
  """Return `y` and `d<name>` of sum(y * cotangent) for every named input."""

  @jax.jit
  def run(inputs):
    y, vjp = jax.vjp(f, inputs)
    (grads,) = vjp(cotangent)
    return y, grads

  y, grads = run(inputs)
  return {"y": y} | {f"d{name}": grad for name, grad in grads.items()}


def _affine(norm, **options):
  def run(case):
    inputs = {k: case[k] for k in ("x", "scale", "bias") if k in case}
    return _outputs_and_grads(lambda inputs: norm(**inputs, **options), inputs, case["g"])

  return run


def _layer_norm(case, meta):
  axes = tuple(meta["normalized_axes"])
  assert ("bias" in case) == meta["use_bias"]
  return _affine(norms.layer_norm, axis=axes, epsilon=meta["eps"])(case)


def _rms_norm(case, meta):
  assert ("bias" in case) == meta["use_bias"]
  # The authors' code switches the partial form off with a negative fraction.
  partial = meta["partial"] if meta["partial"] > 0 else None
  placement = meta["eps_placement"].split(":")[0]
  options = {"epsilon": meta["eps"], "epsilon_placement": placement, "partial": partial}
  return _affine(norms.rms_norm, **options)(case)


def _crms_norm(case, meta):
  got = _affine(norms.crms_norm, epsilon=meta["eps"])(case)
  full = norms.decompress(case["x"])
  np.testing.assert_allclose(norms.compress(full), case["x"], rtol=1e-12)
  return got | {"y_full": norms.rms_norm(full, epsilon=meta["eps"])}


def _scale_norm(case, meta):
  shortest = np.min(np.linalg.norm(case["x"][0], axis=-1))
  assert (shortest < meta["eps"]) == meta["small_row"]
  return _affine(norms.scale_norm, epsilon=meta["eps"])(case)


def _fix_norm(case, meta):
  def f(inputs):
    embedded = norms.fix_norm_embed(inputs["table"], case["tokens"], epsilon=meta["eps"])
    logits = norms.fix_norm_logits(
      inputs["table"], inputs["features"], inputs["out_bias"], epsilon=meta["eps"]
    )
    return embedded, logits

  inputs = {name: case[name] for name in ("table", "features", "out_bias")}
  got = _outputs_and_grads(f, inputs, (case["g_emb"], case["g_logits"]))
  got["emb"], got["logits"] = got.pop("y")
  return got


def _lp_prenorm(case, meta):
  x, p, limit = case["x"], meta["p"], meta["M"]
  assert x.shape[-1] == meta["n"]
  scaled = jax.jit(lambda x: norms.mad_prenormalize(x, p=p, compute_dtype=jnp.float64, limit=limit))
  z, factor = map(np.asarray, scaled(x))
  kappa = norms.prenormalizer_gain(meta["n"], p=p, limit=limit)
  powers = np.sum(np.abs(z) ** p, axis=-1)
  return {
    "kappa": kappa,
    "mad": kappa / factor[..., 0],
    "z": z,
    "S": powers,
    # z is factor * (x - mean): its powers, scaled back, are the ones that a naive sum meets.
    "naive_overflows": (powers / factor[..., 0] ** p > limit).astype(np.int32),
    "y": jax.jit(lambda x: norms.lp_normalize(x, p=p, epsilon=0.0))(x),
  }


KINDS = {
  "layer_norm": _layer_norm,
  "rms_norm": _rms_norm,
  "crms_norm": _crms_norm,
  "scale_norm": _scale_norm,
  "fix_norm": _fix_norm,
  "lp_prenorm": _lp_prenorm,
}
INPUTS = {"x", "scale", "bias", "g", "table", "tokens", "features", "out_bias", "g_emb", "g_logits"}


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  assert meta["kind"] in KINDS, f"{name}: kind {meta['kind']!r} has no reference check"
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


LP_CASES = sorted(n for n, meta in META["cases"].items() if meta["kind"] == "lp_prenorm")


@pytest.mark.parametrize("name", LP_CASES)
def test_rows_that_overflow_in_float16_do_not_with_the_prenormalizer(name):
  case, p = CASES[name], META["cases"][name]["p"]
  x = jnp.asarray(case["x"], jnp.float16)
  # The bound of "max" is the tighter one from p = 3.
  prenormalizer = "max" if p >= 3 else "mad"
  y = norms.lp_normalize(x, p=p, epsilon=0.0, prenormalize=prenormalizer)
  assert y.dtype == jnp.float16
  np.testing.assert_allclose(y, case["y"], rtol=0, atol=5e-3 * np.max(np.abs(case["y"])))
  deviations = (x - jnp.mean(x, -1, keepdims=True)).astype(jnp.float32)
  naive = jnp.sum((jnp.abs(deviations) ** p).astype(jnp.float16), -1)
  clear = np.abs(np.sum(np.abs(deviations) ** p, -1) / 65504 - 1) > 0.02
  assert np.array_equal(np.isinf(naive)[clear], case["naive_overflows"][clear] == 1)
