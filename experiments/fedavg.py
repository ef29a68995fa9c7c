"""Federated averaging in memory: clients stacked on one axis, one round as one pure function.

FedAvg as "Understanding the Role of Layer Normalization in Label-Skewed Federated Learning"
(https://arxiv.org/abs/2308.09565) runs it: all clients take part in every round, each starts from
the server's parameters with a fresh optimizer, and the server averages what comes back.

Clients of different sizes are padded to one size; padding is never drawn.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

LossFn = Callable[[PyTree, PyTree, PyTree], tuple[Float[Array, ""], PyTree]]


def local_sgd(
  loss_fn: LossFn,
  params: PyTree,
  state: PyTree,
  examples: PyTree,
  batches: Int[Array, "steps batch"],
  learning_rate: ArrayLike,
) -> tuple[PyTree, PyTree, Float[Array, " steps"]]:
  """Take one client's steps of plain SGD.

  Args:
    loss_fn: `loss_fn(params, state, batch) -> (loss, state)`.
    params: what is trained.
    state: what the forward pass updates, running statistics say; may be empty.
    examples: the client's examples, arrays (n, ...).
    batches: indices of examples, one row per step.
    learning_rate: of all steps; may be traced.

  Returns:
    `(params, state, losses)`, the losses before each step.
  """

  def step(carry: tuple[PyTree, PyTree], chosen: Int[Array, " batch"]) -> tuple[Any, Any]:
    params, state = carry
    batch = jax.tree.map(lambda v: jnp.take(v, chosen, axis=0), examples)
    (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state, batch)
    params = jax.tree.map(lambda p, g: p - (learning_rate * g).astype(p.dtype), params, grads)
    return (params, state), loss

  (params, state), losses = jax.lax.scan(step, (params, state), batches)
  return params, state, losses


def fedavg_round(
  loss_fn: LossFn,
  params: PyTree,
  state: PyTree,
  clients: PyTree,
  batches: Int[Array, "clients steps batch"],
  *,
  learning_rate: ArrayLike,
  weights: Float[ArrayLike, " clients"] | None = None,
) -> tuple[PyTree, PyTree, Float[Array, "clients steps"]]:
  """Train every client from the server's parameters and average them: P <- sum_k w_k P_k.

  Args:
    loss_fn: `loss_fn(params, state, batch) -> (loss, state)`.
    params: the server's parameters.
    state: the server's running statistics, averaged likewise; integers, as counters of batches,
      are the first client's.
    clients: arrays (clients, n, ...).
    batches: indices of each client's examples for each of its steps.
    learning_rate: of all steps; may be traced.
    weights: share of each client in the average, summing to 1; None: equal shares.

  Returns:
    `(params, state, losses)`.

  Raises:
    ValueError: if clients, batches and weights differ in the number of clients, a client has no
      examples, or weights do not sum to 1.
  """
  sizes = {v.shape[0] for v in (batches, *jax.tree.leaves(clients))}
  if len(sizes) != 1 or batches.ndim != 3:
    raise ValueError(
      "clients and batches must have one entry per client, batches of shape (clients, steps, "
      f"batch); got {sorted(sizes)} clients and batches {batches.shape}"
    )
  if any(v.shape[1] == 0 for v in jax.tree.leaves(clients)):
    raise ValueError("clients must have at least one example each, got none")
  (num_clients,) = sizes
  weights = _checked_weights(weights, num_clients)

  def train(examples: PyTree, chosen: Int[Array, "steps batch"]) -> tuple[Any, ...]:
    return local_sgd(loss_fn, params, state, examples, chosen, learning_rate)

  trained, states, losses = jax.vmap(train)(clients, batches)

  def average(v: Array) -> Array:
    if not jnp.issubdtype(v.dtype, jnp.floating):
      return v[0]
    return jnp.tensordot(weights.astype(v.dtype), v, axes=1)

  return jax.tree.map(average, trained), jax.tree.map(average, states), losses


def _checked_weights(weights: ArrayLike | None, num_clients: int) -> Float[Array, " clients"]:
  if weights is None:
    return jnp.full(num_clients, 1 / num_clients)
  if jnp.shape(weights) != (num_clients,):
    raise ValueError(f"weights must have shape ({num_clients},), got {jnp.shape(weights)}")
  if not isinstance(weights, jax.core.Tracer) and abs(np.sum(weights) - 1) > 1e-6:
    raise ValueError(f"weights must sum to 1, got {np.sum(weights)}")
  return jnp.asarray(weights)


def draw_batches(
  key: Key[Array, ""], sizes: Int[ArrayLike, " clients"], num_steps: int, batch_size: int
) -> Int[Array, "clients steps batch"]:
  """Draw each client's batches, with replacement, from a key of its own.

  Args:
    key: key of the round.
    sizes: how many examples each client has.
    num_steps: steps of each client.
    batch_size: examples of each step.

  Returns:
    Indices below the client's size.
  """
  sizes = jnp.asarray(sizes)
  draw = lambda key, size: jax.random.randint(key, (num_steps, batch_size), 0, size)
  return jax.vmap(draw)(jax.random.split(key, len(sizes)), sizes)


def stack_clients(
  examples: dict[str, np.ndarray], parts: Sequence[np.ndarray], *, pad_to: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Stack the examples of each client, padded to one size.

  Args:
    examples: arrays (n, ...).
    parts: indices of the examples of each client.
    pad_to: that size; None: that of the largest client.

  Returns:
    `(clients, sizes)`: arrays (clients, pad_to, ...), padded with the client's own first example,
    and the number of real examples.

  Raises:
    ValueError: if a client has no example, or more than pad_to.
  """
  sizes = np.array([len(part) for part in parts])
  if not len(sizes) or not sizes.all():
    raise ValueError(f"parts must give every client at least one example, got sizes {sizes}")
  pad_to = max(sizes) if pad_to is None else pad_to
  if pad_to < max(sizes):
    raise ValueError(f"pad_to must be at least {max(sizes)}, the largest client, got {pad_to}")
  rows = np.stack([np.append(p, np.full(pad_to - len(p), p[0])) for p in parts])
  return {name: v[rows] for name, v in examples.items()}, sizes


def split_uniformly(labels: np.ndarray, num_clients: int, *, seed: int = 0) -> list[np.ndarray]:
  """Deal examples to clients at random, in equal numbers: the control without label shift.

  Args:
    labels: class of each example.
    num_clients: number of clients.
    seed: of the order in which examples are dealt.

  Returns:
    The indices of each client.
  """
  return np.array_split(np.random.default_rng(seed).permutation(len(labels)), num_clients)


def split_by_class(
  labels: np.ndarray, num_clients: int, classes_per_client: int, *, seed: int = 0
) -> list[np.ndarray]:
  """Deal out classes: client k has the next `classes_per_client` ones, round and round.

  With as many clients as classes and one class each, client k has class k. Clients of one class
  share its examples.

  Args:
    labels: class of each example, 0, 1, ...
    num_clients: number of clients.
    classes_per_client: how many different classes a client has.
    seed: of the order in which a class's examples are dealt.

  Returns:
    The indices of each client.

  Raises:
    ValueError: if a client can't have that many classes, or some class would go to nobody.
  """
  num_classes = int(np.max(labels)) + 1
  if not 1 <= classes_per_client <= num_classes:
    raise ValueError(
      f"classes_per_client must be 1, ..., {num_classes} (all), got {classes_per_client}"
    )
  if num_clients * classes_per_client < num_classes:
    raise ValueError(
      f"num_clients * classes_per_client must be at least the {num_classes} classes, got "
      f"{num_clients} * {classes_per_client}"
    )
  rng = np.random.default_rng(seed)
  dealt = np.arange(num_clients * classes_per_client) % num_classes
  owners = dealt.reshape(num_clients, classes_per_client)
  parts = [[] for _ in range(num_clients)]
  for c in range(num_classes):
    (mine,) = np.nonzero((owners == c).any(1))
    shuffled = rng.permutation(np.flatnonzero(labels == c))
    for client, share in zip(mine, np.array_split(shuffled, len(mine)), strict=True):
      parts[client].append(share)
  return [np.concatenate(part) for part in parts]


def split_dirichlet(
  labels: np.ndarray, num_clients: int, concentration: float, *, seed: int = 0
) -> list[np.ndarray]:
  """Deal out each class in proportions over clients that are drawn from Dir(concentration).

  Args:
    labels: class of each example, 0, 1, ...
    num_clients: number of clients.
    concentration: small gives strong label shift, large next to none.
    seed: of proportions and order.

  Returns:
    The indices of each client; a client may have none (`stack_clients` refuses those).

  Raises:
    ValueError: if the concentration is not above 0.
  """
  if not concentration > 0:
    raise ValueError(f"concentration must be > 0, got {concentration}")
  rng = np.random.default_rng(seed)
  parts = [[] for _ in range(num_clients)]
  for c in range(int(np.max(labels)) + 1):
    shuffled = rng.permutation(np.flatnonzero(labels == c))
    shares = rng.dirichlet(np.full(num_clients, concentration))
    cuts = np.round(np.cumsum(shares)[:-1] * len(shuffled)).astype(int)
    for part, mine in zip(parts, np.split(shuffled, cuts), strict=True):
      part.append(mine)
  return [np.concatenate(part) for part in parts]
