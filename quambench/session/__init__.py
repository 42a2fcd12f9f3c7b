"""A run of the gate: which cases are judged, against which baselines, and what is stored."""
