"""A small stand-in for a fork of Quamba: an observer, a grouping and a whole calibration of its own."""
