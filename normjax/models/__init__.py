"""Whole networks: classifiers whose norm is chosen by name, generators built on one norm, flows."""

from normjax.models._attentive_lstm import AttentiveLSTM
from normjax.models._ferumal import ferumal_flow
from normjax.models._flows import affine_coupling_flow, maf, rqs_coupling_flow
from normjax.models._glow import Glow
from normjax.models._injective import InjectiveFlow
from normjax.models._inpainting import InpaintingGenerator
from normjax.models._lstm import LSTMClassifier
from normjax.models._mlp import MLP
from normjax.models._resnet import ResNet
from normjax.models._spade import FADEResBlock, SPADEGenerator, SPADEResBlock, TSITStage
from normjax.models._vit import ViT

__all__ = [
  "AttentiveLSTM",
  "FADEResBlock",
  "Glow",
  "InjectiveFlow",
  "InpaintingGenerator",
  "LSTMClassifier",
  "MLP",
  "ResNet",
  "SPADEGenerator",
  "SPADEResBlock",
  "TSITStage",
  "ViT",
  "affine_coupling_flow",
  "ferumal_flow",
  "maf",
  "rqs_coupling_flow",
]
