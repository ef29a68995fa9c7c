"""Whole networks whose norm is chosen by name: classifiers of images and of sequences."""

from normjax.models._attentive_lstm import AttentiveLSTM
from normjax.models._lstm import LSTMClassifier
from normjax.models._mlp import MLP
from normjax.models._resnet import ResNet
from normjax.models._vit import ViT

__all__ = ["AttentiveLSTM", "LSTMClassifier", "MLP", "ResNet", "ViT"]
"""Assembled networks in which the norms of this library stand where their papers put them."""

from normjax.models._inpainting import InpaintingGenerator
from normjax.models._spade import FADEResBlock, SPADEGenerator, SPADEResBlock, TSITStage

__all__ = ["FADEResBlock", "InpaintingGenerator", "SPADEGenerator", "SPADEResBlock", "TSITStage"]
