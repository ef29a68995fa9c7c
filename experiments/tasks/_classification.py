"""Classification of labelled images, scored by the share of held-out images that are wrong."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.tasks._scoring import markdown, over_held_out
from experiments.tasks._task import Task

_CLASSES = {"mlp": "MLP", "resnet": "ResNet", "vit": "ViT", "lstm": "LSTMClassifier"}


class Classification(Task):
  """What the training loop and the evaluation need to know about classifiers.

  The config chooses a model (`model.name`) and its norm (`norm.name`, "none" for none) apart from
  each other; an LSTM reads the rows of an image from top to bottom as its frames.

  Attributes:
    dataset: labelled images in memory.
    model: JSON spec of the classifier, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
  """

  metric = "error"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    if self.dataset.num_classes is None:
      raise ValueError(f"config.task: data set {config.data.name!r} has no labels to classify")
    name = config.model.name
    data.check_name("config.model.name", name, _CLASSES)
    height, width, channels = self.dataset.shape
    place = {
      "mlp": {"shape": [height, width, channels]},
      "resnet": {"in_features": channels},
      "vit": {"shape": [height, width, channels]},
      "lstm": {"in_features": width * channels},
    }
    self.model = {
      "class": f"normjax.models.{_CLASSES[name]}",
      "kwargs": {
        **place[name],
        "num_classes": self.dataset.num_classes,
        "norm": None if config.norm.name == "none" else config.norm.name,
        "norm_options": config.norm.options.to_dict(),
        **config.model[name].to_dict(),
      },
    }

  def inputs(self, image):
    """Return uint8 images (b, h, w, c) on [-1, 1], as frames (b, h, w * c) for an LSTM."""
    x = image.astype(jnp.float32) * (2 / (self.dataset.num_levels - 1)) - 1
    return x.reshape(*x.shape[:2], -1) if self.config.model.name == "lstm" else x

  def loss(self, model, batch, key):
    """Return the mean cross entropy (nats) of a batch and the metrics to log."""
    del key
    logits = model(self.inputs(batch["image"]))
    label = batch["label"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    return loss, {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, -1) == label)}

  def score(self, model, batch, key, draws):
    """Return 1 for each image (b,) that a model in evaluation mode gets wrong, else 0."""
    del key, draws
    wrong = jnp.argmax(model(self.inputs(batch["image"])), -1) != batch["label"]
    return wrong.astype(jnp.float32)

  def evaluate(self, model):
    """Return how a model in evaluation mode does on all held-out images.

    Returns:
      `error`, the share of wrong labels, `error_se`, its standard error, `loss`, the cross entropy
      in nats, `references`, the errors of the commonest class and of the nearest class mean, and
      `examples`.
    """
    log_probs = self.log_probs(model)
    label = self.dataset.test["label"]
    error = float(np.mean(log_probs.argmax(-1) != label))
    return {
      "error": error,
      "error_se": math.sqrt(error * (1 - error) / len(label)),
      "loss": float(-np.mean(log_probs[np.arange(len(label)), label])),
      "references": self._references(),
      "examples": len(label),
    }

  def log_probs(self, model):
    """Return the log-probabilities (n, num_classes) of all held-out images."""
    function = lambda model, batch, key: jax.nn.log_softmax(model(self.inputs(batch["image"])))
    return over_held_out(self, model, function)

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    rows = [("this model", f"{100 * result['error']:.2f} ± {100 * result['error_se']:.2f}")]
    names = {"majority": "commonest class", "nearest_mean": "nearest class mean"}
    rows += [(names[name], f"{100 * error:.2f}") for name, error in result["references"].items()]
    return markdown(f"held-out, {result['examples']} images", "% wrong", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    panels = {"cross entropy": ["loss"], "error": ["test_error"]}
    return plots.panels(workdir, panels)

  def pictures(self, model, workdir, count=64):
    """Write what a model confuses: a matrix, and the images whose class it finds least likely.

    Args:
      model: the trained model, in evaluation mode.
      workdir: the folder.
      count: how many images.

    Returns:
      The files written.
    """
    if count < 1:
      raise ValueError(f"count must be at least 1, got {count}")
    log_probs, label = self.log_probs(model), self.dataset.test["label"]
    confusion = np.zeros((self.dataset.num_classes,) * 2, int)
    np.add.at(confusion, (label, log_probs.argmax(-1)), 1)
    worst = np.argsort(log_probs[np.arange(len(label)), label], kind="stable")[:count]
    hardest = Path(workdir) / "hardest.png"
    images = self.dataset.test["image"][worst]
    plots.image_grid(images, hardest, num_levels=self.dataset.num_levels)
    return [plots.confusion(confusion, Path(workdir) / "confusion.png"), hardest]

  def _references(self):
    train, test = self.dataset.train, self.dataset.test
    flat = lambda arrays: arrays["image"].reshape(len(arrays["label"]), -1).astype(np.float32)
    x, classes = flat(train), np.unique(train["label"])
    means = np.stack([x[train["label"] == k].mean(0) for k in classes])
    scores = flat(test) @ means.T - 0.5 * (means**2).sum(-1)[None]
    common = np.bincount(train["label"]).argmax()
    return {
      "majority": float(np.mean(test["label"] != common)),
      "nearest_mean": float(np.mean(classes[scores.argmax(-1)] != test["label"])),
    }
