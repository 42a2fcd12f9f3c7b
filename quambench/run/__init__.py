"""The only conductor: a case is calibrated, quantized and measured."""
