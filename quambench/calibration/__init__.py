"""Calibration: one pass of sequences through a model feeds every observer; sensitivity, Hessians, trained scales."""
