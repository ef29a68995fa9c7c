"""A stack of identical bijectors, run under `lax.scan`: compile time does not grow with depth."""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import PyTree

from normjax.flows._bijector import Bijector
from normjax.flows._reversible import Stack, reversible_forward, scan_forward, scan_inverse

MEMORY_MODES = ("store", "remat", "reversible")


class Scan(Bijector):
  """Applies `length` bijectors of one structure in order.

  z = f_L( ... f_1(x)),  log_det (B,) = sum of the layers' log_dets.

  Every Variable of the layers is stacked on a leading axis of size `length` and scanned, trainable
  or not, so that e.g. permutation indices may differ by layer.

  Args:
    make: `make(rngs)`, or `make(rngs, slice_of_xs)` when `xs` is given, builds one layer. It is
      traced once, whatever the length.
    length: the number of layers, at least 1.
    xs: a pytree of arrays with leading axis `length`; layer i is made with slice i.
    memory: what the gradient of `forward` keeps per layer. "store": every activation; "remat": the
      layer's input, the rest is recomputed; "reversible": nothing, inputs are rebuilt by the
      inverse, at the price of rounding errors that grow with depth. `inverse` always uses plain
      autodiff.
    rngs: the random streams; every layer gets its own split of each.

  Raises:
    ValueError: if `length` or `memory` is out of range, or `xs` has another leading axis.

  Example:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> make = lambda rngs, shift: flows.ElementwiseAffine(loc=shift, scale=2.0)
    >>> stack = flows.Scan(make, 3, jnp.arange(3.0), memory="store", rngs=nnx.Rngs(0))
    >>> z, log_det = stack.forward(jnp.ones((2, 4)))
  """

  def __init__(
    self,
    make: Callable[..., Bijector],
    length: int,
    xs: PyTree | None = None,
    *,
    memory: str = "store",
    rngs: nnx.Rngs,
  ):
    if length < 1:
      raise ValueError(f"length must be at least 1, got {length}")
    if memory not in MEMORY_MODES:
      raise ValueError(f"memory must be one of {MEMORY_MODES}, got {memory!r}")
    for leaf in jax.tree.leaves(xs):
      if leaf.shape[:1] != (length,):
        raise ValueError(f"xs must have leading axis {length} (length), got shape {leaf.shape}")
    self.length, self.memory = length, memory

    @nnx.split_rngs(splits=length)
    @nnx.vmap(in_axes=(0, 0))
    def create(rngs, xs):
      return make(rngs) if xs is None else make(rngs, xs)

    self.layers = create(rngs, xs)

  def _stack(self) -> Stack:
    graphdef, params, rest = nnx.split(self.layers, nnx.Param, ...)
    # Pure dicts: arrays only, so no Variable is shared between traces.
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    return Stack(params, rest, lambda params, rest: nnx.merge(graphdef, params, rest))

  @property
  def constant_logdet(self):
    """Whether that of the layers is constant."""
    return self.layers.constant_logdet

  def forward(self, x, cond=None):
    """Apply the layers first to last; return `(z, log_det)`."""
    if self.memory == "reversible":
      return reversible_forward(self._stack(), x, cond)
    return scan_forward(self._stack(), x, cond, remat=self.memory == "remat")

  def inverse(self, z, cond=None):
    """Undo the layers last to first; return `(x, log_det)`."""
    return scan_inverse(self._stack(), z, cond)

  def forward_varying(self, x, cond=None):
    """Return `(z, log_det)` of what varies with x in the layers' log-determinants.

    Energies are differentiated twice, which a backward pass of one's own does not allow: here
    "reversible" keeps what "remat" keeps.
    """
    remat = self.memory != "store"
    return scan_forward(self._stack(), x, cond, remat=remat, method="forward_varying")

  def inverse_varying(self, z, cond=None):
    """Return `(x, log_det)` likewise."""
    return scan_inverse(self._stack(), z, cond, method="inverse_varying")

  def data_init(self, x, cond=None):
    """Start each layer from what those before it make of `x`, in a scan; return the latent."""
    return self._data_init("data_init", x, cond, reverse=False)

  def data_init_inverse(self, z, cond=None):
    """Start each layer from what those after it make of `z`, in a scan; return the data."""
    return self._data_init("data_init_inverse", z, cond, reverse=True)

  def _data_init(self, method, x, cond, *, reverse):
    stack = self._stack()

    def body(x, layer):
      module = stack.merge(*layer)
      y = getattr(module, method)(x, cond)
      return y, nnx.to_pure_dict(nnx.state(module))

    y, started = jax.lax.scan(body, x, (stack.params, stack.rest), reverse=reverse)
    state = nnx.state(self.layers)
    nnx.replace_by_pure_dict(state, started)
    nnx.update(self.layers, state)
    return y
