"""Calibrations in the formats of other programs. One format a module."""
