"""What a checkpoint must read back as: name, shape, dtype and fingerprint of every leaf.

Tensorstore keeps no checksum of array contents, and a missing chunk reads as zeros: a damaged file
can restore without an error. So each save also records a 32-bit fingerprint per leaf, computed on
the devices that hold it, and each restore compares.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, UInt32

from normjax.checkpoint._files import checksum


def _mix(h: Array) -> Array:
  """Scramble uint32 words one to one (the finalizer of MurmurHash3)."""
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def _words(x: Array) -> UInt32[Array, "..."]:
  """Return the bits of any array as uint32, without reshaping what is sharded."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag], axis=-1)  # (..., 2)
  if jnp.issubdtype(x.dtype, jnp.floating):
    bits = jnp.finfo(x.dtype).bits
    if bits < 8:
      x, bits = x.astype(jnp.float32), 32
    x = jax.lax.bitcast_convert_type(x, {8: "uint8", 16: "uint16"}.get(bits, "uint32"))
  elif x.dtype.itemsize == 8:
    x = jax.lax.bitcast_convert_type(x, jnp.uint32)  # (..., 2)
  return x.astype(jnp.uint32)


def _fingerprint(x: Array) -> UInt32[Array, ""]:
  """Sum mix(bits_i ^ mix(i)) modulo 2^32: any one changed word shows, and so do swaps.

  Integer sums are exact in every order, so the result does not depend on the sharding.
  """
  words = _words(x)
  index, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


@jax.jit
def _fingerprints(leaves: list[Array]) -> UInt32[Array, "n"]:
  return jnp.stack([_fingerprint(jnp.asarray(x)) for x in leaves])


def describe(tree: PyTree) -> dict[str, dict[str, Any]]:
  """Return {"params/a/kernel": {"shape": [...], "dtype": ...}} of a concrete or abstract tree."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda t: t, tree))
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): {
      "shape": list(leaf.shape),
      "dtype": str(leaf.dtype),
    }
    for path, leaf in leaves
  }
  if len(named) != len(leaves):
    raise ValueError("state has two leaves with the same path; rename keys that hold a '/'")
  return named


def fingerprinted(tree: PyTree) -> dict[str, dict[str, Any]]:
  """Return what `describe` does, and the fingerprint of every leaf."""
  named, leaves = describe(tree), jax.tree.leaves(tree)
  sums = jax.device_get(_fingerprints(leaves)) if leaves else []
  return {
    name: {**leaf, "fingerprint": int(value)}
    for (name, leaf), value in zip(named.items(), sums, strict=True)
  }


def data_states(data_iterator: Any) -> list[Any]:
  """Return the state of the data iterator of every process, in order.

  Raises:
    ValueError: if a state is not JSON.
  """
  state = data_iterator.get_state()
  try:
    text = json.dumps(state).encode()
  except TypeError as error:
    raise ValueError(
      f"data_iterator must have a JSON state (an iterator of a grain dataset), got {state!r}"
    ) from error
  if jax.process_count() == 1:
    return [json.loads(text)]
  sizes = multihost_utils.process_allgather(np.int32(len(text)))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def make_manifest(state: PyTree, data_iterator: Any) -> dict[str, Any]:
  """Return everything that a checkpoint says about itself, as JSON."""
  data = None if data_iterator is None else data_states(data_iterator)
  manifest = {"leaves": fingerprinted(state), "data": data}
  return {**manifest, "checksum": checksum(manifest)}


def differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  """Return one line per leaf that the checkpoint and the wanted tree do not share."""
  show = lambda leaf: f"{leaf['dtype']}{leaf['shape']}" if leaf else "(absent)"
  same = lambda a, b: a and b and (a["shape"], a["dtype"]) == (b["shape"], b["dtype"])
  return [
    f"{name}: {show(saved.get(name))} in the checkpoint, {show(wanted.get(name))} in the program"
    for name in sorted(saved.keys() | wanted.keys())
    if not same(saved.get(name), wanted.get(name))
  ]
