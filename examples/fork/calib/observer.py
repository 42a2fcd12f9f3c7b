"""An observer with Quamba's own interface: nothing here knows quambench."""

import torch


class SlowPercentile:
    """The moving average of a percentile, with half the usual sigma."""

    def __init__(self, n_bits, clip_ratio, sym, percentile_alpha=0.9995, percentile_sigma=0.005):
        self.q_max = 2 ** (n_bits - 1) - 1
        self.alpha, self.sigma = percentile_alpha, percentile_sigma
        self.average = None

    def update(self, w):
        seen = torch.quantile(w.abs().flatten(), self.alpha)
        self.average = seen if self.average is None else self.average + self.sigma * (seen - self.average)

    def get_quantization_parameters(self):
        scale = self.average / self.q_max
        return scale, torch.zeros_like(scale)
