"""The registry, and the error of every bad argument."""

import functools
import inspect

import jax.numpy as jnp
import pytest
from flax import nnx

from normjax import norms

X = jnp.ones((2, 3, 4))
IMAGES = jnp.ones((2, 3, 3, 4))
FUNCTIONS = [
  norms.layer_norm,
  norms.rms_norm,
  norms.scale_norm,
  norms.l2_normalize,
  norms.lp_normalize,
]
NEEDED = {"group_norm": {"num_groups": 1}}  # options without which few channels do not work
PLACES = {"positional_norm": {"positions": (3,)}}  # whose affine is one of positions
each = pytest.mark.parametrize("norm", FUNCTIONS, ids=lambda f: f.__name__)


def accepted(cls, **options):
  """Return the options that a layer has: one without statistics has no epsilon."""
  return {k: v for k, v in options.items() if k in inspect.signature(cls.__init__).parameters}


def test_make_builds_by_name_with_options():
  assert list(norms.NAMES) == sorted(norms.NAMES)
  for name, cls in norms.NAMES.items():
    options = accepted(cls, epsilon=0.25)
    make = functools.partial(norms.make, name, 4, **options, **NEEDED.get(name, {}))
    norm = make(rngs=nnx.Rngs(0))
    assert type(norm) is cls
    assert not options or norm.epsilon == 0.25
    assert nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0))(IMAGES)).shape == IMAGES.shape
  assert norms.make("rms_norm", 4, rngs=nnx.Rngs(0), partial=0.5).partial == 0.5


def test_make_names_the_nearest_norm_and_option():
  with pytest.raises(ValueError, match="got 'layernorm': did you mean 'layer_norm'"):
    norms.make("layernorm", 4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="got 'qqq': use one of batch_norm, "):
    norms.make("qqq", 4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="rms_norm has no option 'epsilom': did you mean 'epsilon'"):
    norms.make("rms_norm", 4, rngs=nnx.Rngs(0), epsilom=1e-3)
  with pytest.raises(ValueError, match="layer_norm has no option 'partial'"):
    norms.make("layer_norm", 4, rngs=nnx.Rngs(0), partial=0.5)


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("epsilon must be >= 0, got -1", {"epsilon": -1}),
    ("epsilon must be >= 0, got nan", {"epsilon": float("nan")}),
    ("axis must name axes", {"axis": 3}),
    ("axis must name axes", {"axis": ()}),
    ("increasing order", {"axis": (-1, 1)}),
    ("increasing order", {"axis": (1, 1)}),
    ("scale must have shape", {"scale": jnp.ones(3)}),
    ("scale must have shape", {"scale": jnp.ones((3, 4))}),
    ("bias must have shape", {"bias": jnp.ones(3)}),
    ("bias must have shape", {"bias": jnp.ones((2, 3, 5))}),
    ("bias must have shape", {"bias": 1.0}),
    ("mask must be boolean", {"mask": jnp.ones((2, 3, 4))}),
    ("mask must have 3 axes", {"mask": jnp.ones((3, 4), bool)}),
    ("mask must have 3 axes", {"mask": jnp.ones((2, 3, 5), bool)}),
    ("dtype must be a floating dtype", {"dtype": jnp.int32}),
  ],
)
@each
def test_bad_arguments(norm, error, options):
  with pytest.raises(ValueError, match=error):
    norm(X, **options)


@each
def test_bad_inputs(norm):
  with pytest.raises(ValueError, match="x must be floating, got int32"):
    norm(jnp.ones((2, 3), jnp.int32))
  with pytest.raises(ValueError, match="x must be floating, got complex64"):
    norm(jnp.ones((2, 3), jnp.complex64))
  with pytest.raises(ValueError, match="at least one entry"):
    norm(jnp.ones((2, 0)))
  with pytest.raises(ValueError, match="axis must name axes"):
    norm(jnp.float32(1))


def test_scalar_scale_is_for_scale_norm_only():
  assert norms.scale_norm(X, 2.0).shape == X.shape
  with pytest.raises(ValueError, match="scale must have shape"):
    norms.layer_norm(X, 2.0)
  with pytest.raises(ValueError, match=r"scale must have shape \(\)"):
    norms.scale_norm(X, jnp.ones(4))


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("partial must be in", {"partial": 0.0}),
    ("partial must be in", {"partial": 1.5}),
    ("partial=0.2 keeps none of 4", {"partial": 0.2}),
    ("single axis", {"partial": 0.5, "axis": (1, 2)}),
    ("axis_name must be None", {"partial": 0.5, "axis_name": "model"}),
    ("epsilon_placement must be 'inside' or 'outside'", {"epsilon_placement": "both"}),
  ],
)
def test_bad_rms_norm_arguments(error, options):
  with pytest.raises(ValueError, match=error):
    norms.rms_norm(X, **options)


def test_bad_power():
  for p in (0.5, 0, float("inf"), float("nan")):
    with pytest.raises(ValueError, match="p must be finite and >= 1"):
      norms.lp_normalize(X, p=p)


def test_bad_compressed_vectors():
  with pytest.raises(ValueError, match="at least one entry"):
    norms.crms_norm(jnp.ones((2, 0)))
  with pytest.raises(ValueError, match="at least 2 entries"):
    norms.compress(jnp.ones((2, 1)))
  with pytest.raises(ValueError, match="epsilon must be >= 0"):
    norms.crms_norm(X, epsilon=-1)
  with pytest.raises(ValueError, match="x must be floating"):
    norms.decompress(jnp.ones(3, jnp.int32))
  with pytest.raises(ValueError, match="num_features must be >= 2"):
    norms.CRMSNorm(1)
  with pytest.raises(ValueError, match="x must have 4 entries"):
    norms.CRMSNorm(5)(jnp.ones((2, 5)))


def test_bad_tables():
  table = jnp.ones((5, 4))
  with pytest.raises(ValueError, match="tokens must be integers, got float32"):
    norms.fix_norm_embed(table, jnp.ones(2))
  with pytest.raises(ValueError, match=r"table must have shape \(tokens, features\)"):
    norms.fix_norm(jnp.ones(4))
  with pytest.raises(ValueError, match="table must be floating"):
    norms.fix_norm(jnp.ones((5, 4), jnp.int32))
  with pytest.raises(ValueError, match="features must have 4 entries"):
    norms.fix_norm_logits(table, jnp.ones((2, 5)))
  with pytest.raises(ValueError, match=r"bias must have shape \(5,\), got \(4,\)"):
    norms.fix_norm_logits(table, jnp.ones((2, 4)), jnp.ones(4))


@pytest.mark.parametrize("name", norms.NAMES)
def test_bad_constructor_arguments(name):
  cls = functools.partial(norms.NAMES[name], **NEEDED.get(name, {}))
  if accepted(norms.NAMES[name], epsilon=-1e-6):
    with pytest.raises(ValueError, match="epsilon must be >= 0"):
      cls(4, epsilon=-1e-6, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="one positive size per normalized axis"):
    cls((3, 4), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="one positive size per normalized axis"):
    cls(0, rngs=nnx.Rngs(0))
  affine = accepted(norms.NAMES[name], use_bias=True, param_dtype=jnp.int32)
  if len(affine) == 2:
    with pytest.raises(ValueError, match="param_dtype must be a floating dtype"):
      cls(4, **PLACES.get(name, {}), **affine, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="x must have 4 entries along axis=-1"):
    cls(4, rngs=nnx.Rngs(0))(jnp.ones((2, 3)))
