"""Calibrations in the formats of other programs. One a module."""
