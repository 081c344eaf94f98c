"""What the scripts of TWINS.md call the twins, their seeds and the readings of a text.

Without PyTorch, which the answer does not need.
"""

MIXERS = ("rwkv", "softmax")
SEEDS = (1, 2, 3)
READINGS = ("all", "skip_first", "after_zero")
