"""The keys that experiments have: those of all, and those of each kind of task."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def common_config() -> ConfigDict:
  """Return what every experiment has; the optimizer is Jet's recipe."""
  config = ConfigDict()
  config.task = ""
  config.seed = 0

  config.data = ConfigDict({"name": "digits", "options": ConfigDict()})

  config.batch_size = 128
  config.total_steps = 1000
  config.optimizer = ConfigDict()
  config.optimizer.lr = 3e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.clip = 1.0
  config.optimizer.weight_decay = 1e-5
  config.optimizer.warmup = 0.1
  config.optimizer.mu_dtype = "float32"
  config.ema_decay = 0.0  # 0: no running mean of the parameters

  config.log_every = 20
  config.eval_every = 200
  config.save_every = 500
  config.keep = 3

  config.eval = ConfigDict()
  config.eval.batch_size = 120
  config.eval.examples = 1000  # held-out examples of the curve; the final number takes all
  return config


_FLOWS = {
  "jet": {
    "depth": 32,
    "block_depth": 2,
    "emb_dim": 512,
    "num_heads": 8,
    "patch_size": 4,
    "kinds": ("channels", "channels", "spatial"),
    "spatial_projections": ("checkerboard", "checkerboard-inv"),
    "memory": "reversible",
    "dtype": "float32",
  },
  "tarflow": {
    "depth": 8,
    "block_depth": 8,
    "emb_dim": 768,
    "head_dim": 64,
    "patch_size": 2,
    "volume_preserving": False,
    "memory": "remat",
    "dtype": "float32",
  },
}


def density_config(flow: str = "jet") -> ConfigDict:
  """Return the defaults of a density; an experiment file overrides what is its own.

  Args:
    flow: "jet" or "tarflow", which decides the keys of `config.model`.
  """
  config = common_config()
  config.task = "density"
  # x = low + (q + u) / levels, see normjax.flows.dequantize; the map of Jet's own code.
  config.levels = 127.5
  config.low = -1.0

  # The flow and its arguments in normjax.flows besides the shape.
  config.flow = flow
  config.model = ConfigDict(_FLOWS[flow])
  config.class_conditional = False
  config.label_dropout = 0.1
  # Above 0: trained on pixels with this Gaussian noise in place of dequantization, and samples are
  # denoised.
  config.noise = 0.0
  config.eval.draws = 5  # dequantizations of the final number
  return config.copy_and_resolve_references()


def classification_config() -> ConfigDict:
  """Return the defaults of a classifier; an experiment file overrides what is its own."""
  config = common_config()
  config.task = "classification"
  # The model is chosen by its name; each has options of its own, arguments in normjax.models.
  config.model = ConfigDict()
  config.model.name = "resnet"
  config.model.mlp = ConfigDict({"width": 128, "depth": 2})
  config.model.resnet = ConfigDict({"width": 16, "depths": (1, 1, 1), "stem_stride": 1})
  config.model.vit = ConfigDict({"patch_size": 4, "features": 64, "depth": 4, "num_heads": 4})
  config.model.lstm = ConfigDict({"width": 64})
  # A key of normjax.norms.NAMES and its options; None: no norm.
  config.norm = ConfigDict()
  config.norm.name = placeholder(str)
  config.norm.name = "batch_norm"
  config.norm.options = ConfigDict()
  config.optimizer.lr = 1e-3
  config.optimizer.b2 = 0.99
  return config.copy_and_resolve_references()


def inpainting_config() -> ConfigDict:
  """Return the defaults of an inpainting generator; an experiment file overrides its own."""
  config = common_config()
  config.task = "inpainting"
  # Arguments of normjax.models.InpaintingGenerator.
  config.model = ConfigDict({"features": 8, "num_blocks": 4, "threshold": 0.8})
  # "region" for the paper's norms, or a key of normjax.norms.NAMES and its options.
  config.norm = ConfigDict()
  config.norm.name = placeholder(str)
  config.norm.name = "region"
  config.norm.options = ConfigDict()
  # Sides of the rectangular holes in pixels; the seed draws those of held-out images.
  config.hole = ConfigDict({"min_side": 8, "max_side": 16, "seed": 0})
  config.loss = ConfigDict({"hole": 1.0, "rest": 0.2})
  config.optimizer.lr = 1e-3
  config.optimizer.b2 = 0.99
  return config.copy_and_resolve_references()


def style_config() -> ConfigDict:
  """Return the defaults of images from layouts; an experiment file overrides its own."""
  config = common_config()
  config.task = "style"
  # Arguments of normjax.models.SPADEGenerator. condition="input" is the same network with instance
  # norms that do not see the layout. Without doublings its first convolution sees all of the
  # layout, so that the two differ in their norms only.
  config.model = ConfigDict(
    {"widths": (16, 16, 16), "hidden_features": 16, "condition": "spade", "upsample": False}
  )
  config.threshold = 0.5  # brightness from which a pixel carries the label of its class
  # Colour photos for the picture of AdaIN.
  options = {"photos": "bundled", "size": 96, "stride": 96, "long_side": 256}
  config.colours = ConfigDict({"name": "natural_patches", "options": options})
  config.optimizer.lr = 1e-3
  config.optimizer.b2 = 0.99
  return config.copy_and_resolve_references()


def injective_config() -> ConfigDict:
  """Return the defaults of an injective flow; an experiment file overrides its own."""
  config = common_config()
  config.task = "injective"
  # x = low + (q + 1/2) / levels, see normjax.flows.dequantize.
  config.levels = 127.5
  config.low = -1.0
  # Arguments of normjax.models.InjectiveFlow.
  config.model = ConfigDict({"latent_dim": 8, "width": 128, "num_blocks": 2})
  # Arguments of normjax.flows.injective_loss, and the noise on pixels.
  config.beta = 10.0
  config.nll_weight = 1.0
  config.num_probes = 1
  config.noise = 0.01
  config.optimizer.lr = 1e-3
  config.optimizer.b2 = 0.99
  return config.copy_and_resolve_references()
