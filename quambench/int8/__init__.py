"""From a float model and its scales to an INT8 model: rotation, fusing, integer weights, the integer runtime."""
