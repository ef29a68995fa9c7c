# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # normjax: five norms, side by side
#
# What each one computes its statistics from, what that does to activations and gradients, how to
# keep padding out, how to train a norm whose state the backward pass writes, and what happens with
# batches of two. Takes about a minute on two CPU cores.

# %%
import subprocess
import sys

# Only in Colab: where pip finds normjax, a wheel or "git+https://..." of the repository.
SOURCE = ""  # @param {type:"string"}

if "google.colab" in sys.modules:
  if not SOURCE:
    raise ValueError("SOURCE is empty: give the address of normjax's repository or wheel")
  requirements = [SOURCE, "scikit-learn", "matplotlib"]
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", *requirements], check=True)

# %%
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from IPython.display import Image, display
from sklearn.datasets import load_digits

from normjax import carried, diagnostics, norms

TINY = os.environ.get("NORMJAX_TINY") == "1"  # a few steps of a small model: what the tests run

# %% [markdown]
# The data: 1797 handwritten digits of 8x8 pixels, 360 of them held out.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))
images = jnp.asarray(digits.images[order] / 16.0, jnp.float32)  # (1797, 8, 8)
labels = jnp.asarray(digits.target[order], jnp.int32)
train, train_labels = images[360:], labels[360:]
test, test_labels = images[:360], labels[:360]
print("train", train.shape, "test", test.shape)

# %% [markdown]
# ## 1. Which inputs does one output depend on?
#
# Every norm comes as a pure function and as a module. Here are five functions without parameters.
# Those with running statistics also return their new state, which we drop for now.

# %%
FUNCTIONS = {
  "batch_norm": lambda x, mask=None: norms.batch_norm(x, mask=mask)[0],
  "layer_norm": lambda x, mask=None: norms.layer_norm(x),
  "group_norm": lambda x, mask=None: norms.group_norm(x, num_groups=2, mask=mask),
  "online_norm": lambda x, mask=None: norms.online_norm(x, decay=0.9, mask=mask)[0],
  "dynamic_tanh": lambda x, mask=None: norms.dynamic_tanh(x, alpha=0.5),
}

# %% [markdown]
# Change one input at a time, and see whether the output in the middle (star) changes.
# `batch_norm` looks at the same feature of the whole batch; `layer_norm` and `group_norm` look at
# one example only; `online_norm` takes the batch as a stream, and looks at the example itself and
# those before; `dynamic_tanh` looks at nothing else.

# %%
BATCH, FEATURES = (5, 6) if TINY else (9, 12)
ROW, COLUMN = BATCH // 2, FEATURES // 3


def dependence(norm):
  """Return for each input (batch, features) whether the output in the middle depends on it."""
  x = jax.random.normal(jax.random.key(0), (BATCH, FEATURES))
  changes = jnp.eye(x.size).reshape(-1, *x.shape)
  outputs = jax.vmap(lambda change: norm(x + change)[ROW, COLUMN])(changes)
  return (jnp.abs(outputs - norm(x)[ROW, COLUMN]) > 1e-6).reshape(x.shape)


figure, axes = plt.subplots(1, 5, figsize=(11, 2.2), sharey=True, layout="constrained")
for axis, (name, norm) in zip(axes, FUNCTIONS.items(), strict=True):
  axis.imshow(jax.jit(dependence, static_argnums=0)(norm), cmap="Blues", vmin=0, vmax=1.5)
  axis.plot(COLUMN, ROW, "*", color="white")
  axis.set(title=name, xlabel="feature", xticks=[], yticks=[])
axes[0].set_ylabel("example")
plt.show()

# %% [markdown]
# ## 2. Activations and gradients
#
# The same network under each norm, which it takes by name. It is deep for its task, and plain, so
# that the norm is all that keeps the signal alive.

# %%
DEPTH, WIDTH = (1, 16) if TINY else (8, 64)
OPTIONS = {
  "batch_norm": {"decay": 0.99},
  "layer_norm": {},
  "group_norm": {"num_groups": 8},
  "online_norm": {"decay": 0.99},
  "dynamic_tanh": {},
}


class Identity(nnx.Module):
  def __call__(self, x):
    return x


class Network(nnx.Module):
  """Images (b, 8, 8) -> logits (b, 10)."""

  def __init__(self, name, *, rngs):
    make = lambda: norms.make(name, WIDTH, rngs=rngs, **OPTIONS[name]) if name else Identity()
    sizes = [64] + [WIDTH] * DEPTH
    self.linears = nnx.List([nnx.Linear(size, WIDTH, rngs=rngs) for size in sizes[:-1]])
    self.norms = nnx.List([make() for _ in range(DEPTH)])
    self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

  def __call__(self, image):
    x = image.reshape(len(image), -1)
    for linear, norm in zip(self.linears, self.norms, strict=True):
      x = nnx.relu(norm(linear(x)))
    return self.head(x)


def cross_entropy(logits, label):
  return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


# %% [markdown]
# `diagnostics.profile` measures every layer's output and the gradient that reaches it; the model
# needs no edits and stays as it is. `draw_profile` makes a picture of one or several profiles.


# %%
def show_profiles(models):
  """Draw the root mean square of outputs and gradients on a batch of 64, layer by layer."""
  loss = lambda logits: cross_entropy(logits, train_labels[:64])
  profiles = {name: diagnostics.profile(m, train[:64], loss=loss) for name, m in models.items()}
  with tempfile.TemporaryDirectory() as folder:
    path = diagnostics.draw_profile(profiles, f"{folder}/profile.png", statistic="rms")
    display(Image(data=path.read_bytes(), width=720))
  return profiles


models = {name: Network(name, rngs=nnx.Rngs(0)) for name in OPTIONS}
models["no norm"] = Network(None, rngs=nnx.Rngs(0))
profiles = show_profiles(models)
for name, found in profiles.items():
  last, first = found.activations["rms"][-2], found.gradients["rms"][0]
  print(f"{name:12} last norm's output: rms {last:.1e}; first layer's gradient: rms {first:.1e}")

# %% [markdown]
# The first three set the scale of each layer anew, so neither activations nor gradients fade; under
# `batch_norm` gradients even grow on their way to the input.
# `dynamic_tanh` measures nothing: it bounds large values, but small ones get smaller by its slope
# (0.5 at first, then learned), and fade even faster than without a norm. `online_norm` starts with
# mean 0 and variance 1, and has to see some examples first: we come back to it.

# %% [markdown]
# ## 3. Masks: padding stays out of the statistics
#
# Take each image as a sequence of 8 rows with 8 features, and pad to 12 rows with garbage. A mask
# is True where a position enters the statistics. All positions are normalized, padded ones too:
# ignore them in the loss.

# %%
rows = train[:4]  # (batch, positions, features)
garbage = jax.random.normal(jax.random.key(0), (4, 4, 8)) + 3.0
padded = jnp.concatenate([rows, garbage], axis=1)
mask = jnp.broadcast_to(jnp.arange(12) < 8, (4, 12))

outputs = {}
for name, norm in FUNCTIONS.items():
  norm = jax.jit(norm)
  outputs[name] = norm(rows), norm(padded), norm(padded, mask)
  alone, unmasked, masked = outputs[name]
  error = lambda y, alone=alone: jnp.abs(y[:, :8] - alone).max()
  print(f"{name:12} padding changes outputs by {error(unmasked):.1e}, masked {error(masked):.1e}")

# %% [markdown]
# `layer_norm` and `dynamic_tanh` never look at another position, so they need no mask. Here is the
# first image under `batch_norm`: with the mask, its rows are those of the unpadded image.

# %%
titles = ("no padding", "padding, no mask", "padding, mask")
figure, axes = plt.subplots(1, 3, figsize=(7, 3), layout="constrained")
for axis, title, y in zip(axes, titles, outputs["batch_norm"], strict=True):
  picture = axis.imshow(y[0], cmap="RdBu", vmin=-2.5, vmax=2.5)
  axis.axhline(7.5, color="black", linestyle=":")
  axis.set(title=title, xticks=[], yticks=[], ylim=(11.5, -0.5))
figure.colorbar(picture, ax=axes, label="output")
plt.show()

# %% [markdown]
# ## 4. State that the backward pass writes
#
# `online_norm`, `power_norm` and `unified_norm` also keep statistics of the *gradient*, which only
# exist in the backward pass. `normjax.carried` gets them out:
#
# - `carried.split` splits a model into structure, parameters, carried state and the rest;
# - `carried.value_and_grad` returns the loss, the gradients, and the *increments* of that state;
# - `carried.apply` adds the increments.
#
# A model without such layers has an empty carried state, so this one loop trains all of them.


# %%
@functools.cache
def fit(name, batch_size, examples):
  """Return the trained model, the loss of each step, and the rms of each step's carried state."""
  graphdef, params, state, rest = carried.split(Network(name, rngs=nnx.Rngs(0)))
  optimizer = optax.adam(1e-3)

  def loss_fn(params, state, rest, image, label):
    model = nnx.merge(graphdef, params, state, rest)
    return cross_entropy(model(image), label), carried.split(model)[3]  # the forward statistics

  def step(training, index):
    params, state, rest, moments = training
    batch = train[index], train_labels[index]
    (loss, rest), grads, increments = carried.value_and_grad(loss_fn)(params, state, rest, *batch)
    updates, moments = optimizer.update(grads, moments)  # gradients only
    params = optax.apply_updates(params, updates)
    state = carried.apply(state, increments)
    sizes = jax.tree.map(lambda v: jnp.sqrt(jnp.mean(v**2)), state)
    return (params, state, rest, moments), (loss, sizes)

  drawn = np.random.default_rng(0).integers(len(train), size=(examples // batch_size, batch_size))
  run = jax.jit(lambda training: jax.lax.scan(step, training, jnp.asarray(drawn)))
  training, (losses, sizes) = run((params, state, rest, optimizer.init(params)))
  return nnx.merge(graphdef, *training[:3]), losses, sizes


# %%
EXAMPLES = 128 if TINY else 25600
_, losses, sizes = fit("online_norm", 64, EXAMPLES)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(losses)
axes[0].set(xlabel="step", ylabel="cross-entropy (nats)", yscale="log")
for i in (0, DEPTH - 1):
  axes[1].plot(sizes["norms"][i]["v"], label=f"norms.{i}.v")
axes[1].set(xlabel="step", ylabel="rms of carried state", yscale="log")
axes[1].legend()
plt.show()

# %% [markdown]
# **What goes wrong otherwise.** No error tells you of these:
#
# - *Differentiating with respect to parameters only*, as with any other norm: `u` and `v` stay
#   zero. It trains, but its gradients are not corrected, so it is not Online Normalization.
# - *Handing increments to the optimizer* along with the gradients: it rescales them, and subtracts
#   what should be added.
# - *Calling a layer twice in one loss*, or *averaging increments over micro-batches*: each counts
#   from the same old state. Let the state go from one micro-batch to the next instead.

# %% [markdown]
# ## 5. Batches of 2, batches of 64
#
# Each run sees the same number of images, so batches of 2 take 32 times as many steps. Each point
# of a curve is a mean over the same number of images.

# %%
CHUNK = 64 if TINY else 1280
trained, figure = {}, plt.figure(figsize=(10, 3.6), layout="constrained")
axes = figure.subplots(1, 2, sharey=True)
for axis, batch_size in zip(axes, (2, 64), strict=True):
  for name in OPTIONS:
    model, losses, _ = fit(name, batch_size, EXAMPLES)
    trained[name, batch_size] = model
    curve = np.asarray(losses).reshape(-1, CHUNK // batch_size).mean(1)
    axis.plot(CHUNK * np.arange(1, len(curve) + 1), curve, label=name)
  axis.set(title=f"batch size {batch_size}", xlabel="images seen", yscale="log")
axes[0].set_ylabel("cross-entropy of training batches (nats)")
axes[0].legend()
plt.show()


# %% [markdown]
# The held-out digits, after `model.eval()`: `batch_norm` and `online_norm` then use their running
# statistics; the others compute the same as in training.


# %%
def accuracy(model):
  model.eval()
  correct = jnp.argmax(model(test), -1) == test_labels
  model.train()
  return float(correct.mean())


print(f"{'held-out accuracy':18} {'batch size 2':>14} {'batch size 64':>14}")
for name in OPTIONS:
  two, many = (accuracy(trained[name, batch_size]) for batch_size in (2, 64))
  print(f"{name:18} {two:14.3f} {many:14.3f}")

# %% [markdown]
# With two examples, `batch_norm` maps each feature to nearly -1 and 1: it only says which of the
# two was larger. The others do not depend on who else is in the batch, or, as `online_norm`,
# remember many batches. `dynamic_tanh` learns slowly at either size, from the faint signal that we
# saw: it is made for networks with shortcuts.
#
# Last, profiles after training with batches of 64: `online_norm` now has its statistics, and
# `dynamic_tanh` its slopes.

# %%
_ = show_profiles({name: trained[name, 64] for name in ("online_norm", "dynamic_tanh")})
