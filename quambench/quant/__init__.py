"""From a float model and its scales to an INT8 model: grid, rotation, fusing, integer runtime."""
