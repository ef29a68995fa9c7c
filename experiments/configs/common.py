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
  "glow": {
    "num_levels": 3,
    "num_steps": 32,
    "width": 512,
    "convolution": "1x1",
    "coupling": "affine",
    "use_act_norm": True,
    "edge_bias": False,
    "memory": "store",
  },
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
    flow: "glow", "jet" or "tarflow", which decides the keys of `config.model`.
  """
  config = common_config()
  config.task = "density"
  # x = low + (q + u) / levels, see normjax.flows.dequantize; the map of Jet's own code.
  config.levels = 127.5
  config.low = -1.0

  # The flow and its arguments, in normjax.flows or normjax.models, besides the shape.
  config.flow = flow
  config.model = ConfigDict(_FLOWS[flow])
  config.class_conditional = False
  config.label_dropout = 0.1
  # "uniform" noise, or "variational": learned, by normjax.models.VariationalDequantizer.
  config.dequantizer = "uniform"
  # Above 0: trained on pixels with this Gaussian noise in place of dequantization, and samples are
  # denoised.
  config.noise = 0.0
  config.eval.draws = 5  # dequantizations of the final number
  return config.copy_and_resolve_references()


def score_matching_config() -> ConfigDict:
  """Return the defaults of an energy-based flow; an experiment file overrides its own."""
  config = common_config()
  config.task = "score_matching"
  config.levels = 256.0
  config.low = 0.0
  config.noise = 0.0
  # A key of experiments.objectives.OBJECTIVES, and what some of them take: the deviation of noise,
  # the length of finite differences, the weight of the mean energy that is added.
  config.objective = ConfigDict({"name": "dsm", "std": 1.0, "epsilon": 1.0, "energy_weight": 0.0})
  # Logits of squeezed pixels, divided by `scale`; the objective sees these, or pixels.
  config.logit = ConfigDict({"alpha": 1e-6, "scale": 0.5})
  config.match_after_preprocessing = True
  # The flow is chosen by its name; each has options of its own, arguments in normjax.models.
  config.flow = "dense"
  config.model = ConfigDict()
  config.model.conv = ConfigDict({"num_layers": 6, "kernel_size": 3, "alpha": 0.3})
  config.model.dense = ConfigDict(
    {"num_layers": 4, "alpha": 0.3, "start": "identity", "initial_bias": 1.0}
  )
  config.optimizer.b2 = 0.999
  config.optimizer.weight_decay = 0.0
  config.ema_decay = 0.999
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
  # A key of normjax.norms.NAMES and its options, --config.norm.options="{'num_groups': 4}" say;
  # "none": no norm.
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


def inverse_problems_config() -> ConfigDict:
  """Return the defaults of conditional flows for inverse problems; a file overrides its own."""
  config = common_config()
  config.task = "inverse_problems"
  # Arguments of normjax.models.ConditionalImageFlow; kind="affine" is what the splines replace.
  config.model = ConfigDict({"kind": "spline", "bound": 0.5, "num_levels": 2, "num_steps": 3})
  config.model.update({"width": 32, "cond_features": 16, "memory": "store"})
  # What is measured, by its name, and the options of each.
  config.problem = ConfigDict({"name": "super_resolution"})
  config.problem.super_resolution = ConfigDict({"factor": 4})
  config.problem.low_light = ConfigDict({"gamma": 3.0, "noise": 0.03})
  config.largest = 10.0  # samples so many times as large as their measurement have exploded
  config.optimizer.lr = 1e-3
  config.ema_decay = 0.99
  config.eval.draws = 8  # samples of each measurement
  config.eval.restored = 600  # held-out images of which samples are compared with
  config.eval.conditions = 64  # measurements of each kind whose samples may explode
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


def table_density_config() -> ConfigDict:
  """Return the defaults of a density of a table; an experiment file overrides what is its own."""
  config = common_config()
  config.task = "table_density"
  # The flow is chosen by its name; each has options of its own, arguments in normjax.models.
  config.flow = "rqs_coupling"
  config.model = ConfigDict()
  config.model.affine_coupling = ConfigDict({"num_layers": 6, "width": 64, "depth": 2})
  config.model.ferumal = ConfigDict(
    {"num_layers": 6, "num_points": 50, "kernel": "squared_exponential"}
  )
  config.model.maf = ConfigDict({"num_layers": 5, "width": 64, "depth": 2})
  # About as many parameters as the couplings have.
  config.model.rqs_autoregressive = ConfigDict(
    {"num_layers": 4, "width": 64, "depth": 2, "num_bins": 8, "tail_bound": 5.0}
  )
  config.model.rqs_coupling = ConfigDict(
    {"num_layers": 6, "width": 64, "depth": 2, "num_bins": 8, "tail_bound": 5.0}
  )
  config.batch_size = 256
  config.optimizer.update(lr=1e-3, b2=0.999, clip=5.0, weight_decay=0.0, warmup=0.05)
  config.eval.update(batch_size=1000, examples=2000)
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
