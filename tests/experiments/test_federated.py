"""Federated averaging: one round, the ways to split examples, and the experiment as a command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import fedavg, federated

COMMAND = "experiments.federated"
RNG = np.random.default_rng(0)
K, N = 3, 4


def loss_fn(params, state, batch):
  logits = jnp.tanh(batch["x"] @ params["w"]) @ params["v"]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
  mean = 0.9 * state["mean"] + 0.1 * jnp.mean(batch["x"], 0)
  return jnp.mean(losses), {"mean": mean, "count": state["count"] + 1}


@pytest.fixture(scope="module")
def task():
  draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
  params = {"w": draw(5, 6), "v": draw(6, 3)}
  state = {"mean": jnp.zeros(5), "count": jnp.zeros((), jnp.int32)}
  clients = {"x": draw(K, N, 5), "label": jnp.asarray(RNG.integers(3, size=(K, N)))}
  return params, state, clients


@jax.jit
def fed(params, state, clients, batches, weights):
  return fedavg.fedavg_round(
    loss_fn, params, state, clients, batches, learning_rate=0.3, weights=weights
  )


def full(num_clients, steps):
  return jnp.broadcast_to(jnp.arange(N), (num_clients, steps, N))


def assert_close(a, b, rtol=1e-5):
  for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(u, v, rtol=rtol, atol=1e-6)


def test_one_client_is_plain_sgd(task):
  params, state, clients = task
  one = jax.tree.map(lambda v: v[:1], clients)
  batches = jnp.array([[[0, 1], [2, 3], [1, 3]]])
  got, new, losses = fed(params, state, one, batches, jnp.ones(1))
  optimizer = optax.sgd(0.3)
  opt_state, wanted, moved = optimizer.init(params), params, state
  gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  for step, chosen in enumerate(batches[0]):
    batch = jax.tree.map(lambda v, chosen=chosen: v[0][chosen], one)
    (loss, moved), grads = gradient(wanted, moved, batch)
    np.testing.assert_allclose(losses[0, step], loss, rtol=1e-5)
    updates, opt_state = optimizer.update(grads, opt_state)
    wanted = optax.apply_updates(wanted, updates)
  assert_close(got, wanted)
  assert_close(new, moved)
  assert new["count"] == 3


def test_one_full_step_is_centralized_sgd(task):
  params, state, clients = task
  got, new, _ = fed(params, state, clients, full(K, 1), None)
  everything = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), clients)
  (_, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state, everything)
  assert_close(got, jax.tree.map(lambda p, g: p - 0.3 * g, params, grads))
  # Running statistics are averaged, counters are those of a client.
  assert_close(new, moved)


def test_average_is_weighted_and_does_not_know_the_order_of_clients(task):
  params, state, clients = task
  weights = jnp.array([0.5, 0.2, 0.3])
  got = fed(params, state, clients, full(K, 2), weights)[:2]
  order = jnp.array([2, 0, 1])
  shuffled = jax.tree.map(lambda v: v[order], clients)
  assert_close(fed(params, state, shuffled, full(K, 2), weights[order])[:2], got)
  first = jnp.array([1.0, 0.0, 0.0])
  alone = fed(params, state, clients, full(K, 2), first)[0]
  wanted = fed(params, state, jax.tree.map(lambda v: v[:1], clients), full(1, 2), None)[0]
  assert_close(alone, wanted)
  assert not np.allclose(alone["w"], got[0]["w"], atol=1e-3)


def test_fedavg_round_refuses(task):
  params, state, clients = task
  call = lambda clients, batches, weights=None: fedavg.fedavg_round(
    loss_fn, params, state, clients, batches, learning_rate=0.1, weights=weights
  )
  for arguments, message in (
    ((clients, full(K, 1), np.array([0.5, 0.2, 0.2])), "weights must sum to 1"),
    ((clients, full(K, 1), np.array([0.5, 0.5])), "weights must have shape"),
    ((clients, full(K - 1, 1)), "one entry per client"),
    ((clients, full(K, 1)[0]), "one entry per client"),
    ((jax.tree.map(lambda v: v[:, :0], clients), full(K, 1)), "at least one example"),
  ):
    with pytest.raises(ValueError, match=message):
      call(*arguments)


# -- Splits ----------------------------------------------------------------------------------------

LABELS = np.random.default_rng(1).integers(6, size=200)


@pytest.mark.parametrize(
  "split",
  [
    lambda: fedavg.split_by_class(LABELS, 6, 1),
    lambda: fedavg.split_by_class(LABELS, 4, 2),
    lambda: fedavg.split_dirichlet(LABELS, 5, 0.5),
    lambda: fedavg.split_uniformly(LABELS, 7),
  ],
)
def test_every_example_goes_to_one_client(split):
  parts = split()
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
  for part, again in zip(parts, split(), strict=True):
    np.testing.assert_array_equal(part, again)


def test_clients_have_their_classes():
  for k, part in enumerate(fedavg.split_by_class(LABELS, 6, 1)):
    assert set(LABELS[part]) == {k}
  found = [set(LABELS[part]) for part in fedavg.split_by_class(LABELS, 4, 2)]
  assert found == [{0, 1}, {2, 3}, {4, 5}, {0, 1}]
  sizes = [len(part) for part in fedavg.split_uniformly(LABELS, 7)]
  assert max(sizes) - min(sizes) <= 1


def test_concentration_decides_how_alike_clients_are():
  def share_of_largest_class(concentration):
    parts = fedavg.split_dirichlet(LABELS, 4, concentration, seed=2)
    return np.mean([np.max(np.bincount(LABELS[p])) / len(p) for p in parts if len(p)])

  assert share_of_largest_class(0.05) > 0.6
  assert share_of_largest_class(1e4) < 0.3


def test_clients_are_padded_with_their_own_examples_which_are_never_drawn():
  parts = [np.array([3, 1]), np.array([0, 2, 4, 5]), np.array([6])]
  clients, sizes = fedavg.stack_clients({"x": 10 * np.arange(7)}, parts, pad_to=5)
  np.testing.assert_array_equal(sizes, [2, 4, 1])
  np.testing.assert_array_equal(clients["x"], [[30, 10, 30, 30, 30], [0, 20, 40, 50, 0], [60] * 5])
  batches = fedavg.draw_batches(jax.random.key(0), sizes, 8, 16)
  assert batches.shape == (3, 8, 16)
  for chosen, size in zip(batches, sizes, strict=True):
    np.testing.assert_array_equal(np.unique(chosen), np.arange(size))
    assert size == 1 or not np.array_equal(chosen[0], chosen[1])
  other = fedavg.draw_batches(jax.random.key(1), sizes, 8, 16)
  assert not np.array_equal(batches[0], other[0])


def test_splits_refuse():
  for call, message in (
    (lambda: fedavg.split_by_class(LABELS, 6, 7), "classes_per_client must be 1, ..., 6"),
    (lambda: fedavg.split_by_class(LABELS, 6, 0), "classes_per_client must be"),
    (lambda: fedavg.split_by_class(LABELS, 2, 2), "must be at least the 6 classes"),
    (lambda: fedavg.split_dirichlet(LABELS, 3, 0.0), "concentration must be > 0"),
    (lambda: fedavg.stack_clients({}, [np.array([1]), np.array([], int)]), "at least one example"),
    (lambda: fedavg.stack_clients({}, [np.arange(3)], pad_to=2), "pad_to must be at least 3"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


# -- What the paper explains, and the experiment ---------------------------------------------------


def test_one_class_makes_features_grow_without_a_norm():
  params = federated.init(jax.random.key(0), (5, 16, 16, 3))
  x = jnp.abs(jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32))
  batches = jnp.broadcast_to(jnp.arange(8), (10, 8))

  def run(model):
    def loss(params, history, batch):
      raw, f = federated.features(params, batch["x"], model)
      logits = f @ params["kernel2"]
      margin = jnp.min(logits[:, 0] - jnp.max(logits[:, 1:], 1))
      lengths = [jnp.mean(jnp.linalg.norm(v, axis=-1)) for v in (raw, f)]
      history = jnp.concatenate([history[1:], jnp.stack([*lengths, margin])[None]])
      return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), history

    train = jax.jit(lambda p: fedavg.local_sgd(loss, p, jnp.zeros((10, 3)), {"x": x}, batches, 0.5))
    return np.asarray(train(params)[1])

  plain, normalized = run("none"), run("feature_norm")
  assert np.all(np.diff(plain[:, 0]) > 0), "||f|| grows"
  assert np.all(np.diff(plain[:, 2]) > 0), "and the margin"
  np.testing.assert_allclose(normalized[:, 1], 4.0, rtol=1e-5)


def test_collapse_of_parallel_and_of_orthogonal_features():
  collapse = jax.jit(federated.collapse)
  h = jnp.arange(1.0, 5.0)[:, None] * jnp.array([[3.0, 4.0, 0.0]])
  found = collapse(h)
  np.testing.assert_allclose([found["cosine"], found["length"]], [1, 12.5], rtol=1e-6)
  np.testing.assert_allclose(found["singular_ratio"], 0, atol=1e-3)
  found = collapse(2.0 * jnp.eye(4, 3))
  np.testing.assert_allclose([found["cosine"], found["singular_ratio"]], [0, 1], atol=1e-6)


def test_command_writes_what_it_prints(command, tmp_path):
  out = tmp_path / "run"
  code, printed, errors = command(COMMAND, f"--out={out}", "--tiny", "--learning_rates=0.1")
  assert code == 0, errors
  results = json.loads((out / "results.json").read_text())
  rows = {(row["split"], row["model"]): row for row in results["rows"]}
  assert set(rows) == {(s, m) for s in ("label shift", "i.i.d.") for m in federated.MODELS}
  assert (out / "table.md").read_text() == printed
  for line in printed.splitlines()[2:]:
    split, label, cell, *_ = (cell.strip() for cell in line.strip("|").split("|"))
    (model,) = (m for m, name in federated.MODELS.items() if name == label)
    accuracy = rows[split, model]["accuracy"]
    assert len(accuracy) == 2
    assert all(0 <= a <= 1 for a in accuracy)
    assert cell == f"{np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=1):.3f}"
    assert [curve[-1] for curve in rows[split, model]["curves"]] == accuracy
  assert (out / "federated.png").read_bytes().startswith(b"\x89PNG")


def test_command_refuses_learning_rates(command, tmp_path):
  code, _, errors = command(COMMAND, f"--out={tmp_path}", "--learning_rates=0.1,-1")
  assert code == 2
  assert "--learning_rates must be positive" in errors
