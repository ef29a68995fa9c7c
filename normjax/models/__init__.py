"""Whole networks: classifiers whose norm is chosen by name, generators built on one norm, flows."""

from normjax.models._attentive_lstm import AttentiveLSTM
from normjax.models._conditional_image_flow import ConditionalImageFlow
from normjax.models._ebflow import ebflow_conv, ebflow_coupling, ebflow_dense
from normjax.models._ferumal import ferumal_flow
from normjax.models._flows import (
  affine_coupling_flow,
  maf,
  rqs_autoregressive_flow,
  rqs_coupling_flow,
)
from normjax.models._gaussianization import gaussianization_flow
from normjax.models._glow import Glow
from normjax.models._injective import InjectiveFlow
from normjax.models._inpainting import InpaintingGenerator
from normjax.models._lstm import LSTMClassifier
from normjax.models._mlp import MLP
from normjax.models._resnet import ResNet
from normjax.models._spade import FADEResBlock, SPADEGenerator, SPADEResBlock, TSITStage
from normjax.models._variational_dequantizer import DequantizedFlow, VariationalDequantizer
from normjax.models._vit import ViT

__all__ = [
  "AttentiveLSTM",
  "ConditionalImageFlow",
  "DequantizedFlow",
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
  "VariationalDequantizer",
  "ViT",
  "affine_coupling_flow",
  "ebflow_conv",
  "ebflow_coupling",
  "ebflow_dense",
  "ferumal_flow",
  "gaussianization_flow",
  "maf",
  "rqs_autoregressive_flow",
  "rqs_coupling_flow",
]
