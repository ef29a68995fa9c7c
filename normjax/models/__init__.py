"""Whole networks whose norm is chosen by name: classifiers of images and of sequences."""

from normjax.models._attentive_lstm import AttentiveLSTM
from normjax.models._lstm import LSTMClassifier
from normjax.models._mlp import MLP
from normjax.models._resnet import ResNet
from normjax.models._vit import ViT

__all__ = ["AttentiveLSTM", "LSTMClassifier", "MLP", "ResNet", "ViT"]
