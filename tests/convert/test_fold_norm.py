"""Folded layers compute what norm and layer computed, and where they could not, folding refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms
from normjax.convert import fold_norm, fold_norm_into

RNG = np.random.default_rng(0)


def draw(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def trained(c, cls=norms.BatchNorm, **options):
  norm = cls(c, **options, rngs=nnx.Rngs(0))
  state = nnx.to_pure_dict(nnx.state(norm))
  values = {name: draw(*v.shape) for name, v in state.items() if v.shape}
  spread = "sigma" if "sigma" in values else "var"
  nnx.update(norm, values | {spread: jnp.abs(values[spread]) + 0.5})
  norm.eval()
  return norm


def assert_same(norm, layer, where, x):
  folded = fold_norm_into(norm, layer, where=where)
  both = {"after": lambda x: norm(layer(x)), "before": lambda x: layer(norm(x))}[where]
  wanted = jax.jit(both)(x)
  got = jax.jit(lambda x: folded(x))(x)
  np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-6 * float(jnp.max(jnp.abs(wanted))))
  assert type(folded) is type(layer)
  assert folded.use_bias
  assert not np.allclose(layer(x), wanted)


NORMS = {
  "BatchNorm": {},
  "BatchNorm without parameters": {"use_scale": False, "use_bias": False},
  "BatchRenorm": {"cls": norms.BatchRenorm},
  "BatchRenorm of the variance": {"cls": norms.BatchRenorm, "average": "var"},
}
CONVS = {
  "one axis": (nnx.Conv(4, 6, 3, padding="VALID", rngs=nnx.Rngs(1)), (2, 7, 4)),
  "strides and dilation": (
    nnx.Conv(4, 6, (3, 2), strides=(2, 1), kernel_dilation=2, padding=0, rngs=nnx.Rngs(1)),
    (2, 9, 6, 4),
  ),
  "groups": (
    nnx.Conv(4, 6, (3, 3), feature_group_count=2, padding="VALID", rngs=nnx.Rngs(1)),
    (2, 5, 4, 4),
  ),
  "depthwise": (
    nnx.Conv(4, 8, 3, feature_group_count=4, padding=((0, 0),), use_bias=False, rngs=nnx.Rngs(1)),
    (2, 5, 4),
  ),
  "one by one, SAME": (nnx.Conv(4, 6, (1, 1), strides=2, rngs=nnx.Rngs(1)), (2, 5, 4, 4)),
  "circular": (nnx.Conv(4, 6, 3, padding="CIRCULAR", rngs=nnx.Rngs(1)), (2, 5, 4)),
  "reflected": (nnx.Conv(4, 6, 3, padding="REFLECT", rngs=nnx.Rngs(1)), (2, 5, 4)),
  "masked kernel": (
    nnx.Conv(4, 6, 3, padding="VALID", mask=jnp.arange(72).reshape(3, 4, 6) % 3, rngs=nnx.Rngs(1)),
    (2, 7, 4),
  ),
}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS.keys())
def test_linear_layer_stands_for_both(options, where):
  for use_bias in (True, False):
    layer = nnx.Linear(3, 5, use_bias=use_bias, rngs=nnx.Rngs(1))
    assert_same(trained(3 if where == "before" else 5, **options), layer, where, draw(2, 4, 3))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", CONVS)
def test_convolution_stands_for_both(name, where):
  layer, shape = CONVS[name]
  channels = layer.in_features if where == "before" else layer.out_features
  assert_same(trained(channels), layer, where, draw(*shape))


def test_a_norm_after_a_padded_convolution_folds():
  assert_same(trained(6), nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(1)), "after", draw(2, 5, 5, 4))


@pytest.mark.parametrize("padding", ["SAME", "CAUSAL", 1, ((1, 0),)])
def test_a_norm_before_a_padded_convolution_does_not_fold(padding):
  norm, layer = trained(4), nnx.Conv(4, 6, 3, padding=padding, rngs=nnx.Rngs(1))
  with pytest.raises(ValueError, match="padding must be one of .*'VALID'.* got .* for a window of"):
    fold_norm_into(norm, layer, where="before")
  # What the error proposes: the norm maps -shift / scale to 0.
  scale, shift = norm.evaluation_affine()
  kernel, bias = fold_norm(norm, layer.kernel[...], layer.bias[...], where="before",
                           padding="VALID")  # fmt: skip
  left, right = {"SAME": (1, 1), "CAUSAL": (2, 0), 1: (1, 1)}.get(padding, (1, 0))
  x = draw(2, 7, 4)
  border = lambda n: jnp.broadcast_to((-shift / scale)[None, None], (2, n, 4))
  padded = jnp.concatenate([border(left), x, border(right)], 1)
  convolve = lambda x, kernel, padding: jax.lax.conv_general_dilated(
    x, kernel, (1,), padding, dimension_numbers=("NWC", "WIO", "NWC")
  )
  np.testing.assert_allclose(
    convolve(padded, kernel, "VALID") + bias[None, None], layer(norm(x)), rtol=0, atol=1e-5
  )


def test_a_pure_scale_folds_before_padding():
  layer, x, scale = nnx.Conv(4, 6, 3, rngs=nnx.Rngs(1)), draw(2, 5, 4), draw(4)
  folded = fold_norm_into((scale, jnp.zeros(4)), layer, where="before")
  np.testing.assert_allclose(folded(x), layer(x * scale[None, None]), rtol=0, atol=1e-5)


def test_arrays_fold_under_jit_in_their_own_dtype():
  scale, shift, kernel = draw(3), draw(3), draw(2, 3)
  fold = jax.jit(functools.partial(fold_norm, where="after"))
  new_kernel, new_bias = fold((scale, shift), kernel)
  np.testing.assert_allclose(new_kernel, kernel * scale[None], rtol=1e-6)
  np.testing.assert_allclose(new_bias, shift, rtol=1e-6)
  new_kernel, new_bias = fold_norm(
    (scale, shift), kernel.astype(jnp.bfloat16), jnp.ones(3), where="after"
  )
  assert (new_kernel.dtype, new_bias.dtype) == (jnp.bfloat16, jnp.float32)
  # A traced shift may be anything: as good as not 0.
  with pytest.raises(ValueError, match="padding must be"):
    jax.jit(functools.partial(fold_norm, where="before"))((scale, shift), draw(3, 3, 2))


def test_the_given_layer_is_left_alone():
  layer = nnx.Linear(3, 5, rngs=nnx.Rngs(1))
  before = nnx.to_pure_dict(nnx.state(layer))
  fold_norm_into(trained(3), layer, where="before")
  jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(layer)), before)


PAIR = (jnp.ones(3), jnp.ones(3))


@pytest.mark.parametrize(
  ("error", "norm", "kernel", "options"),
  [
    ("where must be 'before' or 'after'", PAIR, draw(3, 3), {"where": "behind"}),
    ("norm must have 5 channels as the outputs of the kernel, got 3", PAIR, draw(3, 5),
     {"where": "after"}),
    ("norm must have 2 channels as the inputs of the kernel, got 3", PAIR, draw(2, 3),
     {"where": "before"}),
    ("norm must have 8 channels as the inputs", PAIR, draw(4, 6),
     {"where": "before", "feature_group_count": 2}),
    ("feature_group_count must divide the 5 outputs", PAIR, draw(3, 5),
     {"where": "after", "feature_group_count": 2}),
    (r"bias must have shape \(3,\)", PAIR, draw(3, 3), {"bias": draw(4), "where": "after"}),
    ("kernel must be floating with axes", PAIR, draw(3), {"where": "after"}),
    ("kernel must be floating", PAIR, jnp.ones((3, 3), jnp.int32), {"where": "after"}),
    ("norm must have evaluation_affine.* got LayerNorm", norms.LayerNorm(3, rngs=nnx.Rngs(0)),
     draw(3, 3), {"where": "after"}),
    (r"norm must scale and shift channels \(c,\)", (jnp.ones(3), jnp.ones(2)), draw(3, 3),
     {"where": "after"}),
    ("got None for a window of", PAIR, draw(2, 3, 3), {"where": "before"}),
  ],
)  # fmt: skip
def test_bad_arguments(error, norm, kernel, options):
  with pytest.raises(ValueError, match=error):
    fold_norm(norm, kernel, **options)


def test_bad_layers():
  with pytest.raises(
    ValueError, match="layer must be an nnx.Linear or nnx.Conv, got ConvTranspose"
  ):
    fold_norm_into(PAIR, nnx.ConvTranspose(3, 3, 3, rngs=nnx.Rngs(0)), where="after")
  dilated = nnx.Conv(3, 3, 3, padding="VALID", input_dilation=2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="layer must not dilate its input"):
    fold_norm_into(PAIR, dilated, where="before")
  assert fold_norm_into(PAIR, dilated, where="after").input_dilation == 2
