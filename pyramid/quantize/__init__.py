"""Quantizers: one file, one paper, one interface (base.py); residual.py stacks them into the pyramid."""

from pyramid.quantize.base import Quantized, Quantizer
from pyramid.quantize.bits import BitQuantizer
from pyramid.quantize.fsq import FSQQuantizer
from pyramid.quantize.residual import LevelConfig, QuantizedChunk, ResidualPyramid
from pyramid.quantize.vq import VectorQuantizer
from pyramid.quantize.words import WordQuantizer

__all__ = [
    "BitQuantizer",
    "FSQQuantizer",
    "LevelConfig",
    "Quantized",
    "QuantizedChunk",
    "Quantizer",
    "ResidualPyramid",
    "VectorQuantizer",
    "WordQuantizer",
]
