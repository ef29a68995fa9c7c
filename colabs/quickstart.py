# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # normjax: a tour
#
# Swap a norm in a Flax model, train a small normalizing flow, sample from it, and get a trained
# model back from a workdir. Takes a few minutes on two CPU cores.

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
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

from normjax import checkpoint, flows, linen, norms

TINY = os.environ.get("NORMJAX_TINY") == "1"  # a few steps of small models: what the tests run

# %% [markdown]
# The data: 1797 handwritten digits of 8x8 pixels with 17 levels, 360 of them held out.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))
images = digits.images[order, :, :, None].astype(np.uint8)
labels = digits.target[order].astype(np.int32)
train, test = jnp.asarray(images[360:]), jnp.asarray(images[:360])
train_labels = jnp.asarray(labels[360:])
print("train", train.shape, "test", test.shape)


# %% [markdown]
# ## 1. Swap a norm
#
# Here is a classifier as it could stand in your own project. Our norms take the arguments of
# flax's and name their parameters alike, so the swap is one word: `nnx.LayerNorm` becomes
# `norms.LayerNorm` or `norms.RMSNorm`.


# %%
class Classifier(nnx.Module):
  """Digits (b, 8, 8, 1) -> logits (b, 10)."""

  def __init__(self, norm, *, rngs):
    self.hidden = nnx.Linear(64, 64, rngs=rngs)
    self.norm = norm(64, rngs=rngs)
    self.head = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, image):
    x = image.reshape(len(image), -1) / 16.0  # (b, 64)
    return self.head(nnx.relu(self.norm(self.hidden(x))))


def train_classifier(norm, steps):
  """Return the loss of every step."""
  graphdef, params, rest = checkpoint.to_state(Classifier(norm, rngs=nnx.Rngs(0)))
  optimizer = optax.adam(3e-3)

  def loss_fn(params, image, label):
    logits = checkpoint.from_state(graphdef, params, rest)(image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  @jax.jit
  def update(params, state, key):
    index = jax.random.randint(key, (128,), 0, len(train))
    loss, grads = jax.value_and_grad(loss_fn)(params, train[index], train_labels[index])
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, losses = optimizer.init(params), []
  for key in jax.random.split(jax.random.key(0), steps):
    params, state, loss = update(params, state, key)
    losses.append(float(loss))
  return losses


# %% [markdown]
# flax's LayerNorm and ours give the same curve; RMSNorm, which does not center, gives another one.

# %%
for norm, style in ((nnx.LayerNorm, "-"), (norms.LayerNorm, "--"), (norms.RMSNorm, "-")):
  name = f"{norm.__module__.split('.')[0]} {norm.__name__}"
  losses = train_classifier(norm, 3 if TINY else 100)
  print(f"{name:20} loss after {len(losses)} steps {losses[-1]:.4f}")
  plt.plot(losses, style, label=name)
plt.xlabel("step")
plt.ylabel("cross-entropy (nats)")
plt.yscale("log")
plt.legend()
plt.show()

# %% [markdown]
# By name, the choice can come from a config: `norms.NAMES` has all, and `docs/norms.md` says
# what each is for. Options are those of the norm's constructor.

# %%
x = jax.random.normal(jax.random.key(0), (4, 64))
for name in ("layer_norm", "rms_norm", "scale_norm", "l2_normalize", "batch_norm", "dynamic_tanh"):
  norm = norms.make(name, 64, rngs=nnx.Rngs(0))
  print(
    f"{name:14} {type(norm).__name__:12} norm of the first row {jnp.linalg.norm(norm(x)[0]):.3f}"
  )

partial = norms.make("rms_norm", 64, partial=0.25, rngs=nnx.Rngs(0))
print("partial RMSNorm", partial(x).shape)

# %% [markdown]
# Linen users find the same modules in `normjax.linen`. The parameter tree of a norm is that of
# flax's, so parameters trained with one can be used with the other.

# %%
theirs = nn.Sequential([nn.Dense(64), nn.LayerNorm(), nn.relu, nn.Dense(10)])
ours = nn.Sequential([nn.Dense(64), linen.LayerNorm(64), nn.relu, nn.Dense(10)])
variables = theirs.init(jax.random.key(0), x)
difference = jnp.abs(theirs.apply(variables, x) - ours.apply(variables, x)).max()
print(f"flax's parameters in both models: outputs differ by at most {difference:.1e}")

# %% [markdown]
# ## 2. Train a flow
#
# [Jet](https://arxiv.org/abs/2412.15129) is a stack of affine couplings whose scales and shifts
# come from small Vision Transformers. A flow gives the exact density of an image,
# log p(x) = log p(z) + log |det dz/dx|, and is trained by maximizing it. Pixels are quantized, so
# uniform noise within their level makes them continuous first.

# %%
SHAPE, LEVELS, LOW = (8, 8, 1), 17 / 2, -1.0  # 17 levels of width 2/17 on [-1, 1)
sizes = {"depth": 4, "emb_dim": 16} if TINY else {"depth": 16, "emb_dim": 64}
options = {"shape": SHAPE, "block_depth": 1, "num_heads": 2, "patch_size": 2, "memory": "store"}
options |= sizes
flow = flows.Flow(flows.Jet(**options, rngs=nnx.Rngs(0)), flows.StandardNormal(SHAPE))
graphdef, params, rest = checkpoint.to_state(flow)

steps = 4 if TINY else 800
optimizer = optax.chain(
  optax.clip_by_global_norm(1.0),
  optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps)),
)


def continuous(image, key):
  return flows.dequantize(image, jax.random.uniform(key, image.shape), levels=LEVELS, low=LOW)


def bits(params, image, key):
  log_prob = checkpoint.from_state(graphdef, params, rest).log_prob(continuous(image, key))
  return flows.bits_per_dim(log_prob, SHAPE, LEVELS).mean()


@jax.jit
def update(params, state, key):
  index_key, noise_key = jax.random.split(key)
  image = train[jax.random.randint(index_key, (128,), 0, len(train))]
  loss, grads = jax.value_and_grad(bits)(params, image, noise_key)
  updates, state = optimizer.update(grads, state)
  return optax.apply_updates(params, updates), state, loss


# %%
held_out = jax.jit(bits)
state, curve, test_curve = optimizer.init(params), [], {}
for step, key in enumerate(jax.random.split(jax.random.key(1), steps), start=1):
  params, state, loss = update(params, state, key)
  curve.append(float(loss))
  if step % (steps // 4) == 0:
    test_curve[step] = float(held_out(params, test, jax.random.key(2)))
    print(f"step {step}: train {curve[-1]:.3f}, held out {test_curve[step]:.3f} bits/dim")

# %%
plt.plot(range(1, steps + 1), curve, label="train batch")
plt.plot(list(test_curve), list(test_curve.values()), "o-", label="held out")
plt.axhline(np.log2(17), color="gray", linestyle=":", label="uniform")
plt.xlabel("step")
plt.ylabel("bits per dimension")
plt.legend()
plt.show()


# %% [markdown]
# ## 3. Look at samples
#
# A sample is the inverse of a latent. A temperature below 1 draws latents nearer to the mode: fewer
# stray pixels, less variety, and in the end blurred averages.


# %%
def quantized(x):
  return flows.quantize(x, num_levels=17, levels=LEVELS, low=LOW)


@jax.jit
def sample(params, key, temperature):
  flow = checkpoint.from_state(graphdef, params, rest)
  return quantized(flow.sample(key, 12, temperature=temperature))


def show(rows, titles):
  """Draw one row of images (n, 8, 8, 1) for every title."""
  size = (len(rows[0]), len(rows))
  figure, axes = plt.subplots(*size[::-1], figsize=size, squeeze=False)
  for row, title, line in zip(rows, titles, axes, strict=True):
    line[0].set_title(title, loc="left", fontsize=9)
    for image, axis in zip(row, line, strict=True):
      axis.imshow(np.asarray(image)[:, :, 0], cmap="gray_r", vmin=0, vmax=16)
      axis.axis("off")
  figure.tight_layout()
  plt.show()


temperatures = (0.5, 0.7, 0.85, 1.0)
rows = [sample(params, jax.random.key(3), temperature) for temperature in temperatures]
show([test[:12], *rows], ["held-out digits", *(f"temperature {t}" for t in temperatures)])

# %% [markdown]
# Between two images there is a path of images: map both to latents, walk along the sphere on which
# the latents of a normal lie, and come back.


# %%
@jax.jit
def interpolate(params, first, last, key):
  flow = checkpoint.from_state(graphdef, params, rest)
  z, _ = flow.bijector.forward(continuous(jnp.stack([first, last]), key))
  cosine = jnp.vdot(z[0], z[1]) / (jnp.linalg.norm(z[0]) * jnp.linalg.norm(z[1]))
  angle = jnp.arccos(cosine)
  t = jnp.linspace(0.0, 1.0, 12)[:, None, None, None]
  path = (jnp.sin((1 - t) * angle) * z[:1] + jnp.sin(t * angle) * z[1:]) / jnp.sin(angle)
  return quantized(flow.bijector.inverse(path)[0])


pairs = [(0, 3), (4, 7), (8, 11)]
paths = [interpolate(params, test[i], test[j], jax.random.key(4)) for i, j in pairs]
# A flow loses nothing: both ends of a path are the images that it started from.
ends = jnp.stack([path[jnp.array([0, -1])] for path in paths])
print("ends reproduced:", bool((ends == test[jnp.array(pairs)]).all()))
show(paths, [f"from {labels[i]} to {labels[j]}" for i, j in pairs])

# %% [markdown]
# ## 4. Save, and load anywhere
#
# A workdir records which model it holds, so the model comes back in one line, in a Colab or in
# another project, without the code that trained it. `experiments.train` writes such workdirs; here
# is one by hand.

# %%
spec = {
  "class": "normjax.flows.Flow",
  "kwargs": {
    "bijector": {"class": "normjax.flows.Jet", "kwargs": options},
    "base": {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": SHAPE}},
  },
}
with tempfile.TemporaryDirectory() as workdir:
  with checkpoint.Checkpointer(workdir, {"model": spec, "config": {"steps": steps}}) as saver:
    saver.save(steps, {"params": params, "rest": rest}, force=True)
  loaded = checkpoint.load(workdir)

_, loaded_params, loaded_rest = checkpoint.to_state(loaded)
again = float(held_out(loaded_params, test, jax.random.key(2)))
print(
  f"{type(loaded).__name__} loaded: {again:.3f} bits/dim, as before: {again == test_curve[steps]}"
)
