"""A whole calibration: every scale of a model at once, in the structure that Quamba's quantizer takes."""

import torch

HEADROOM = 1.02


def calibrate(model, data):
    """The largest value of each activation, with a little room above it, over 127."""
    largest = [{} for _ in range(model.n_layers + 1)]  # one per layer, and one for lm_head

    def hook(layer, key, x):
        seen = x.abs().amax()
        largest[layer][key] = torch.maximum(largest[layer].get(key, seen), seen)

    for tokens in data:
        model(tokens, hook)
    return [{key: HEADROOM * amax / 127 for key, amax in of_layer.items()} for of_layer in largest]
