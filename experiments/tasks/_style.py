"""Images from layouts: SPADE against a layout that is seen at the input alone, scored by L1.

The layout of an image is made of the image itself: the bright pixels carry the label of its class,
the others a label of their own.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.tasks._scoring import markdown, mean_and_error, score_all
from experiments.tasks._style_pictures import colour_transfers, layout_threes
from experiments.tasks._task import Task


class Style(Task):
  """What the training loop and the evaluation need to know about images of a given layout.

  `config.model.condition` is "spade" or "input": whether the norms see the layout, or only the
  first convolution, of the same network.

  Attributes:
    dataset: labelled images in memory.
    model: JSON spec of the generator, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
    num_labels: the labels of a layout: 0 outside, 1 + class inside.
  """

  metric = "l1"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    if self.dataset.num_classes is None:
      raise ValueError(f"config.task: data set {config.data.name!r} has no labels for layouts")
    if not 0 < config.threshold < 1:
      raise ValueError(f"config.threshold must be between 0 and 1, got {config.threshold}")
    self.num_labels = self.dataset.num_classes + 1
    self.model = {
      "class": "normjax.models.SPADEGenerator",
      "kwargs": {
        "num_classes": self.num_labels,
        "out_features": self.dataset.shape[-1],
        **config.model.to_dict(),
      },
    }

  def layout(self, batch):
    """Return the labels (b, h, w): 1 + class where an image is at least the threshold, else 0."""
    level = self.config.threshold * (self.dataset.num_levels - 1)
    bright = jnp.asarray(batch["image"]).mean(-1) >= level
    return jnp.where(bright, 1 + jnp.asarray(batch["label"]).reshape(-1, 1, 1), 0)

  def inputs(self, image):
    """Return uint8 images (b, h, w, c) on [0, 1]."""
    return image.astype(jnp.float32) / (self.dataset.num_levels - 1)

  def draw(self, model, batch):
    """Return the images (b, h, w, c) on [0, 1] that a model draws from the layouts of a batch."""
    return (model(self.layout(batch)) + 1) / 2

  def loss(self, model, batch, key):
    """Return the mean absolute error of a batch and the metrics to log."""
    del key
    loss = jnp.mean(jnp.abs(self.draw(model, batch) - self.inputs(batch["image"])))
    return loss, {"loss": loss}

  def score(self, model, batch, key, draws):
    """Return the mean absolute error (b,) of images on [0, 1]."""
    del key, draws
    error = jnp.abs(self.draw(model, batch) - self.inputs(batch["image"]))
    return jnp.mean(error, (1, 2, 3))

  def evaluate(self, model):
    """Return the absolute error of a model in evaluation mode on all held-out images.

    Returns:
      `l1` and `l1_se`, its standard error over images; `references`: the errors of the best level
      for each label of a layout, and of the best image for each class; `examples`.
    """
    scores = score_all(self, model)
    mean, error = mean_and_error(scores)
    return {
      "l1": mean,
      "l1_se": error,
      "references": self._references(),
      "examples": len(scores),
    }

  def _references(self):
    # Medians have the least absolute error.
    train, test = self.dataset.train, self.dataset.test
    x, y, top = train["image"], test["image"], self.dataset.num_levels - 1
    seen, held = np.asarray(self.layout(train)), np.asarray(self.layout(test))
    levels = np.stack([np.median(x[seen == k], 0) for k in range(self.num_labels)])
    classes = range(self.dataset.num_classes)
    images = np.stack([np.median(x[train["label"] == k], 0) for k in classes])
    error = lambda guess: float(np.abs(guess - y).mean() / top)
    return {"label_median": error(levels[held]), "class_median": error(images[test["label"]])}

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    rows = [("this model", f"{result['l1']:.4f} ± {result['l1_se']:.4f}")]
    names = {
      "label_median": "median level of each label of the layout",
      "class_median": "median image of each class",
    }
    rows += [(names[name], f"{error:.4f}") for name, error in result["references"].items()]
    return markdown(f"held-out, {result['examples']} images", "L1 (0 to 1)", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    return plots.panels(workdir, {"absolute error": ["loss", "test_l1"]})

  def pictures(self, model, workdir, count=32):
    """Write held-out images in threes, layout, drawn, original; and photos in others' colours.

    The second picture shows AdaIN by itself, without the model: see `colour_transfers`.

    Args:
      model: the trained model, in evaluation mode.
      workdir: the folder.
      count: how many images.

    Returns:
      The files written.
    """
    if count < 1:
      raise ValueError(f"count must be at least 1, got {count}")
    batch = self.evaluation_arrays(count)
    drawn = np.asarray(jax.jit(self.draw)(model, batch))
    threes = Path(workdir) / "layouts.png"
    original = batch["image"] / (self.dataset.num_levels - 1)
    layout_threes(np.asarray(self.layout(batch)), drawn, original, self.num_labels, threes)
    colours = self.config.colours
    photos = data.load(colours.name, **colours.options)
    return [threes, colour_transfers(photos, Path(workdir) / "colours.png")]
