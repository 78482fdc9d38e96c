"""The layers that kinds of weights are recorded with, each alone (calibration.layers)."""

from __future__ import annotations

EAGER = "eager"  # behind a kind's name: without Triton
# (outputs, inputs, rows): no two sizes that tensors may have are proportional; rows that are a multiple of 32 and that are not
SHAPES = ((3072, 1024, 1000), (1536, 2048, 992), (1280, 5632, 777), (2560, 1536, 1503), (4096, 2304, 640))
FEW = 3  # rows of an input that is small
