"""One block of TarFlow: an affine map of each token by a function of the tokens before it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax.blocks import dot_general
from normjax.flows._bijector import Bijector
from normjax.flows._exp import stretched
from normjax.flows._jet import Permutation
from normjax.flows._tarflow_guidance import UNCONDITIONAL, Condition
from normjax.flows._tarflow_transformer import CausalTransformer, uniform_linear
from normjax.flows._widened import widened


class AutoregressiveBlock(Bijector):
  """Standardizes each token of (b, n, f) by a log-scale and a shift that depend on earlier ones.

  h = x W_in + b_in + pos (+ class);  o = transformer(h) W_out + b_out;  (a, b)_i = o_{i-1},
  (a, b)_0 = 0;  z_i = (x_i - b_i) exp(-a_i),  log_det = -sum(a),  i in the order of the block.

  `forward` computes all tokens at once, `inverse` one after the other.
  """

  def __init__(
    self,
    order,
    features,
    *,
    block_depth,
    emb_dim,
    head_dim,
    num_classes,
    volume_preserving,
    dtype,
    param_dtype,
    rngs,
  ):
    options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    num_tokens = order.shape[0]
    self.volume_preserving = volume_preserving
    self.order = Permutation(order)
    self.proj_in = uniform_linear(features, emb_dim, **options)
    small = lambda *shape: nnx.Param(0.01 * rngs.params.normal(shape, param_dtype))
    self.posemb = small(num_tokens, emb_dim)
    self.class_embedding = None if num_classes is None else small(num_classes, emb_dim)
    self.transformer = CausalTransformer(emb_dim, head_dim, block_depth, **options)
    # Zero, bias and all, so that a new block is exactly the identity.
    self.proj_out = nnx.Linear(
      emb_dim,
      features if volume_preserving else 2 * features,
      kernel_init=nnx.initializers.zeros,
      dot_general=dot_general,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  @property
  def constant_logdet(self):
    """Whether the block only shifts."""
    return self.volume_preserving

  def forward(self, x: Float[Array, "b n f"], cond: Condition = UNCONDITIONAL):
    """Return `(z, log_det)` with one pass over all tokens."""
    x = self._reorder(x)
    h = self._embed(x, self._reorder(self.posemb[...][None]), self._class_vector(cond.label))
    later = lambda o: jnp.pad(o[:, :-1], ((0, 0), (1, 0), (0, 0)))
    log_scale, shift = map(later, self._predict(self.transformer(h)))
    z = stretched(x - shift, -log_scale)
    return self._reorder(z), -jnp.sum(log_scale, axis=(1, 2))

  def inverse(self, z: Float[Array, "b n f"], cond: Condition = UNCONDITIONAL):
    """Return `(x, log_det)` token by token: x_0 = z_0, x_{i+1} = z_{i+1} exp(a) + b."""
    guidance, z = cond.guidance, self._reorder(z)
    posemb = self._reorder(self.posemb[...][None])[0]
    length = z.shape[1]
    given = self._class_vector(cond.label)
    none = None if cond.label is None else self._class_vector(jnp.full_like(cond.label, -1))

    def predict(x, position, classes, cache, index, temperature):
      h = self._embed(x[:, None], position[None, None], classes)
      h, cache = self.transformer.step(h, cache, index, temperature)
      return [o[:, 0] for o in self._predict(h)], cache

    def body(carry, token):
      x, (cache, weak_cache) = carry
      z_next, position, index = token
      prediction, cache = predict(x, position, given, cache, index, 1.0)
      if guidance is not None:
        weak, weak_cache = predict(x, position, none, weak_cache, index, guidance.temperature)
        prediction = guidance.push(prediction, weak, (index + 1) / (length - 1))
      log_scale, shift = prediction
      x = z_next * jnp.exp(log_scale) + shift
      return (x, (cache, weak_cache)), (x, log_scale)

    cache = self.transformer.empty_cache(self._embed(z[:, :1], posemb[None, :1], given), length)
    start = (z[:, 0], (cache, None if guidance is None else cache))
    tokens = (jnp.moveaxis(z[:, 1:], 1, 0), posemb[:-1], jnp.arange(length - 1))
    _, (rest, log_scale) = jax.lax.scan(body, start, tokens)
    x = jnp.concatenate([z[:, :1], jnp.moveaxis(rest, 0, 1)], axis=1)
    return self._reorder(x), jnp.sum(log_scale, axis=(0, 2))

  def _reorder(self, x):
    # The order is that of the tokens or its reverse, and so its own inverse.
    return x.at[:, self.order[...]].get(mode="promise_in_bounds", unique_indices=True)

  def _embed(self, x, posemb, classes):
    h = self.proj_in(x)
    h = h + posemb.astype(h.dtype)
    return h if classes is None else h + classes[:, None].astype(h.dtype)

  def _class_vector(self, label):
    """Return the class embeddings (b, emb) of labels; no label (-1) has the mean of all."""
    if self.class_embedding is None:
      return None
    table = self.class_embedding[...]
    # A label that no check could see under tracing must not pass for another class.
    rows = table.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return jnp.where((label == -1)[:, None], jnp.mean(table, axis=0)[None], rows)

  def _predict(self, h):
    # A head in low precision would make the scale of `inverse` drift from that of `forward`.
    o = self.proj_out(widened(h))
    return (jnp.zeros_like(o), o) if self.volume_preserving else jnp.split(o, 2, axis=-1)
