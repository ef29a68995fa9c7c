# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # normjax: flows
#
# Fit a density to a table, condition it, sample; train a flow of images; look inside. Takes about
# four minutes on two CPU cores.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_digits

from normjax import flows, models

TINY = os.environ.get("NORMJAX_TINY") == "1"  # a few steps of small models: what the tests run

# %% [markdown]
# ## 1. A density of a table
#
# Replace `table` by your own rows of real numbers. Here are four measurements of 569 tumours, with
# a diagnosis that we leave aside for now. A density needs continuous columns: add uniform noise as
# wide as the last digit to rounded ones, and drop duplicates before you split.

# %%
source = load_breast_cancer()
NAMES = ["mean radius", "mean texture", "mean smoothness", "mean concavity"]
columns = [list(source.feature_names).index(name) for name in NAMES]
table = source.data[:, columns].astype(np.float32)  # (rows, columns)
benign = source.target.astype(np.float32)[:, None]  # (rows, 1): 1 benign, 0 malignant

order = np.random.default_rng(0).permutation(len(table))
held_out, training = order[:114], order[114:]
mean, std = table[training].mean(0), table[training].std(0)
x, x_test = ((table[rows] - mean) / std for rows in (training, held_out))
print("training rows", x.shape, "held out", x_test.shape)

# %% [markdown]
# A flow is a bijector and the distribution of its latents. `models` holds assembled ones;
# `flows.fit` trains by maximum likelihood, and stops when rows that it set aside get less likely.

# %%
EPOCHS = 2 if TINY else 300
SIZES = dict(num_layers=1, width=8) if TINY else dict(num_layers=4, width=32)


def fit(cond=None):
  """Return the flow that was fitted to the training rows, and the record of its training."""
  cond_dim = None if cond is None else cond.shape[-1]
  flow = models.rqs_coupling_flow(
    len(NAMES), **SIZES, depth=1, tail_bound=5.0, cond_dim=cond_dim, rngs=nnx.Rngs(0)
  )
  return flows.fit(
    flow, x, cond=cond, key=jax.random.key(0), optimizer=optax.adamw(2e-3, weight_decay=1e-2),
    epochs=EPOCHS, batch_size=64, patience=30,
  )  # fmt: skip


# %%
result = fit()
gaussian = multivariate_normal(x.mean(0), np.cov(x.T))
log_prob = jax.jit(lambda flow, x, cond=None: flow.log_prob(x, cond))
print(f"full-covariance Gaussian  {gaussian.logpdf(x_test).mean():.3f} nats per held-out row")
print(f"flow of epoch {result.best_epoch:3}        {log_prob(result.flow, x_test).mean():.3f}")

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(result.train_losses, label="training")
axis.plot(result.validation_losses, label="set aside")
axis.axvline(result.best_epoch, color="gray", linestyle=":")
axis.set(xlabel="epoch", ylabel="nats per row")
axis.legend()
plt.show()

# %% [markdown]
# Samples are standardized rows, so scale them back. `temperature` below 1 draws nearer to the mode.

# %%
PAIRS = [(0, 3), (1, 2)]


def scatter(axes, rows, title, color):
  """Draw two pairs of columns of standardized rows."""
  rows = np.asarray(rows) * std + mean
  for axis, (i, j) in zip(axes, PAIRS, strict=True):
    axis.plot(rows[:, i], rows[:, j], ".", color=color, markersize=3, label=title)
    axis.set(xlabel=NAMES[i], ylabel=NAMES[j])
    axis.legend(loc="upper right")


draw = jax.jit(lambda flow, *args: flow.sample(*args), static_argnums=2)
figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", sharey="col", layout="constrained")
scatter(axes[0], x, "training rows", "tab:gray")
scatter(axes[1], draw(result.flow, jax.random.key(1), len(x)), "samples", "tab:blue")
plt.show()

# %% [markdown]
# ## 2. Condition it
#
# `cond` is whatever the density depends on, one row per example: here the diagnosis. The same call
# fits p(row | diagnosis), and `sample` takes the diagnosis of each sample.

# %%
conditional = fit(benign[training]).flow
test_log_prob = log_prob(conditional, x_test, benign[held_out])
print(f"given the diagnosis       {test_log_prob.mean():.3f} nats per held-out row")

figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", sharey="col", layout="constrained")
for value, name, color in ((1.0, "benign", "tab:green"), (0.0, "malignant", "tab:red")):
  chosen = x[benign[training][:, 0] == value]
  scatter(axes[0], chosen, f"{name}, training rows", color)
  cond = jnp.full((len(chosen), 1), value)
  samples = draw(conditional, jax.random.key(2), len(chosen), cond)
  scatter(axes[1], samples, f"{name}, samples", color)
plt.show()

# %% [markdown]
# Densities of the classes make a classifier, by Bayes' rule:
# log p(benign | row) - log p(malignant | row) = log p(row | benign) + log p(benign) - ...

# %%
prior = benign[training].mean()
ones = jnp.ones((len(x_test), 1))
log_odds = log_prob(conditional, x_test, ones) - log_prob(conditional, x_test, 0 * ones)
log_odds += np.log(prior / (1 - prior))
correct = (log_odds > 0) == (benign[held_out][:, 0] == 1)
print(f"held-out diagnoses right by Bayes' rule: {correct.mean():.3f}")

# %% [markdown]
# ## 3. A flow of images
#
# Glow: ActNorm, an invertible convolution, a coupling, repeated at several scales. The convolution
# is chosen by its name: "1x1", "cinc", "emerging", "periodic". Three things are special to images.
# Pixels are whole numbers, so noise within their level makes them continuous. ActNorm starts from
# data, by a call of its own. And what is minimized is bits per dimension, of the whole numbers.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))
images = digits.images[order, :, :, None].astype(np.uint8)  # (1797, 8, 8, 1), 17 levels
train, test = images[360:], images[:360]
SHAPE, LEVELS = (8, 8, 1), 17.0


def continuous(image, key):
  """Map levels to [-0.5, 0.5)."""
  return flows.dequantize(image, jax.random.uniform(key, image.shape), levels=LEVELS, low=-0.5)


def bits(flow, image, cond, key):
  return flows.bits_per_dim(flow.log_prob(continuous(image, key), cond), SHAPE, LEVELS)


sizes = dict(num_levels=1, num_steps=1, width=4)
if not TINY:
  sizes = dict(num_levels=2, num_steps=6, width=48)
glow = models.Glow(SHAPE, convolution="cinc", **sizes, rngs=nnx.Rngs(0))
glow = flows.init_from_data(glow, continuous(train[:256], jax.random.key(3)))

# %%
image_epochs = 1 if TINY else 60
steps = image_epochs * (1293 // 128)
image_result = flows.fit(
  glow, train, key=jax.random.key(4), objective=bits,
  optimizer=optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)),
  ),
  epochs=image_epochs, batch_size=128, patience=None,
)  # fmt: skip
glow = image_result.flow
score = jax.jit(lambda image, key: bits(glow, image, None, key))
print(f"uniform {np.log2(17):.3f}, flow {score(test, jax.random.key(5)).mean():.3f} bits/dim")

# %% [markdown]
# Real digits, and samples at three temperatures:


# %%
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


temperatures = (0.6, 0.8, 1.0)
sample = jax.jit(lambda key, temperature: glow.sample(key, 12, temperature=temperature))
rows = [sample(jax.random.key(6), t) for t in temperatures]
rows = [flows.quantize(row, num_levels=17, levels=LEVELS, low=-0.5) for row in rows]
show([test[:12], *rows], ["held-out digits", *(f"temperature {t}" for t in temperatures)])

# %% [markdown]
# ## 4. Look inside
#
# **Is it right?** Going there and back must return the image, and held-out latents must look like
# draws of the base: their quantiles against those of a standard normal lie on the diagonal.

# %%
x_image = continuous(test, jax.random.key(7))
latents, log_det = jax.jit(glow.bijector.forward)(x_image)
again, back_log_det = jax.jit(glow.bijector.inverse)(latents)
print(f"round trip: {jnp.abs(again - x_image).max():.1e}")
print(f"log-determinants cancel to {jnp.abs(log_det + back_log_det).max():.1e}")

normal = np.sort(np.random.default_rng(1).standard_normal(latents.size))
figure, axis = plt.subplots(figsize=(3.5, 3.5), layout="constrained")
axis.plot(normal[::50], np.sort(np.asarray(latents).ravel())[::50], ".", markersize=3)
axis.plot([-4, 4], [-4, 4], color="gray", linewidth=1)
axis.set(xlabel="quantiles of a standard normal", ylabel="quantiles of latents")
plt.show()

# %% [markdown]
# **What does it find likely?** The density of upside-down digits and of digits whose pixels were
# shuffled, next to that of real ones.

# %%
shuffled = test.reshape(360, -1)[:, np.random.default_rng(2).permutation(64)].reshape(test.shape)
groups = {"held-out digits": test, "upside down": test[:, ::-1], "pixels shuffled": shuffled}
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, group in groups.items():
  axis.hist(np.clip(score(group, jax.random.key(8)), 0, 12), 40, alpha=0.6, label=name)
axis.set(xlabel="bits per dimension (12 and more in the last bin)", ylabel="images")
axis.legend()
plt.show()

# %% [markdown]
# **How does it bend space?** In two dimensions one can watch. A `Chain` holds its layers in
# `bijectors`: apply them one after the other to two moons and to a grid.

# %%
points = flows.two_moons(jax.random.key(9), 500 if TINY else 4000)
LAYERS, WIDTH = (1, 8) if TINY else (4, 32)
orders = [[0, 1], [1, 0]]  # each layer transforms the second of its order
layers = [
  flows.RQSCoupling(orders[k % 2], num_conditioning=1, width=WIDTH, rngs=nnx.Rngs(k))
  for k in range(LAYERS)
]
moons = flows.Flow(flows.Chain(layers), flows.StandardNormal((2,)))
moons = flows.fit(
  moons, points, key=jax.random.key(10), optimizer=optax.adam(3e-3), epochs=1 if TINY else 60
).flow

side = jnp.linspace(-1.5, 2.5, 21)
lines = jnp.stack(jnp.meshgrid(side, side), axis=-1)  # (21, 21, 2)
figure, axes = plt.subplots(1, LAYERS + 1, figsize=(13, 2.8), layout="constrained")
for k, axis in enumerate(axes):
  axis.plot(*lines.T, color="lightgray", linewidth=0.7)
  axis.plot(*lines.transpose(1, 0, 2).T, color="lightgray", linewidth=0.7)
  axis.plot(*points[:1500].T, ".", markersize=1.5)
  axis.set(title=f"after layer {k}" if k else "data", xlim=(-4, 4), ylim=(-4, 4))
  if k < LAYERS:
    layer = jax.jit(moons.bijector.bijectors[k].forward)
    points = layer(points)[0]
    lines = layer(lines.reshape(-1, 2))[0].reshape(lines.shape)
plt.show()

# %% [markdown]
# The density itself, on a fine grid: it integrates to 1.

# %%
side = jnp.linspace(-2.5, 3.5, 61 if TINY else 241)
grid = jnp.stack(jnp.meshgrid(side, side), axis=-1)  # (rows, columns, 2)
density = jnp.exp(jax.jit(moons.log_prob)(grid.reshape(-1, 2))).reshape(grid.shape[:2])
print(f"integral {density.sum() * (side[1] - side[0]) ** 2:.3f}")

figure, axis = plt.subplots(figsize=(4, 4), layout="constrained")
axis.imshow(density, origin="lower", extent=(-2.5, 3.5, -2.5, 3.5), cmap="magma")
axis.set(xticks=[], yticks=[])
plt.show()
