"""Residual blocks: where normalization stands in a residual branch."""

from normjax.blocks._attention import softmax_attention
from normjax.blocks._dot_general import dot_general
from normjax.blocks._encoder_block import EncoderBlock
from normjax.blocks._repeat import Repeat

__all__ = ["EncoderBlock", "Repeat", "dot_general", "softmax_attention"]
