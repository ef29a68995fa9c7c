"""Whole networks, assembled from the parts of normjax."""

from normjax.models._attentive_lstm import AttentiveLSTM

__all__ = ["AttentiveLSTM"]
"""Whole networks whose norm is chosen by name: classifiers of images and of sequences."""

from normjax.models._lstm import LSTMClassifier
from normjax.models._mlp import MLP
from normjax.models._resnet import ResNet
from normjax.models._vit import ViT

__all__ = ["LSTMClassifier", "MLP", "ResNet", "ViT"]
