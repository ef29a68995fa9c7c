"""The protocol of every flow layer.

`forward` maps data to latent, the *normalizing* direction of Real NVP, Glow and Jet; `inverse` maps
latent to data. distrax, TFP and flowjax name the two directions the other way round: wrap a
bijector in `Inverted` to use it in their sense.

A log-determinant that is the same for every x belongs to the normalizer of an energy model and is
no part of the score (https://arxiv.org/abs/2305.15267): `forward_varying` leaves it out, and layers
whose determinant costs more than their map do not compute it there.
"""

import abc

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree


class Bijector(nnx.Module):
  """Maps batches of data to latents and back, each with its log-determinant.

  `forward`: x (B, ...) -> z (B, ...), log|det dz/dx| (B,).
  `inverse`: z (B, ...) -> x (B, ...), log|det dx/dz| (B,).

  The leading axis of every input is the batch; there are no single-example semantics. `log_det` is
  float32 or wider whatever the dtype of the data. A bijector never changes its own state in either
  method, so both may be traced, scanned and differentiated at will.
  """

  # `update_statistics` visits the layers as `init_from_data` does, and clears this.
  starts_from_data = True

  @abc.abstractmethod
  def forward(
    self, x: Float[Array, "b *event"], cond: PyTree | None = None
  ) -> tuple[Float[Array, "b *latent"], Float[Array, "b"]]:
    """Return `(z, log_det)`: the latent of `x` and log|det dz/dx| per example."""

  @abc.abstractmethod
  def inverse(
    self, z: Float[Array, "b *latent"], cond: PyTree | None = None
  ) -> tuple[Float[Array, "b *event"], Float[Array, "b"]]:
    """Return `(x, log_det)`: the data of `z` and log|det dx/dz| per example."""

  @property
  def constant_logdet(self) -> bool:
    """Whether `log_det` is the same for every input, parameters and `cond` being given."""
    return False

  def forward_varying(
    self, x: Float[Array, "b *event"], cond: PyTree | None = None
  ) -> tuple[Float[Array, "b *latent"], Float[Array, "b"]]:
    """Return `(z, log_det)` less the part of `log_det` that is the same for every x.

    Layers whose constant determinant is no by-product override it, so as not to compute that.
    """
    z, log_det = self.forward(x, cond)
    return z, jnp.zeros_like(log_det) if self.constant_logdet else log_det

  def inverse_varying(
    self, z: Float[Array, "b *latent"], cond: PyTree | None = None
  ) -> tuple[Float[Array, "b *event"], Float[Array, "b"]]:
    """Return `(x, log_det)` of `inverse`, less the same part."""
    x, log_det = self.inverse(z, cond)
    return x, jnp.zeros_like(log_det) if self.constant_logdet else log_det

  def data_init(
    self, x: Float[Array, "b *event"], cond: PyTree | None = None
  ) -> Float[Array, "b *latent"]:
    """Start the parameters that depend on data from `x`, in place; return the latent of `x`.

    `init_from_data` calls it, on a copy. Layers that have no such parameters inherit it.
    """
    return self.forward(x, cond)[0]

  def data_init_inverse(
    self, z: Float[Array, "b *latent"], cond: PyTree | None = None
  ) -> Float[Array, "b *event"]:
    """Do the same for a layer that is used the other way round; return the data of `z`."""
    return self.inverse(z, cond)[0]

  def check_initialized(self) -> None:
    """Raise ValueError if `init_from_data` had unfit data; under jit there is no check."""
