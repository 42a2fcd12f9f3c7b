"""The gate: it says whether a result is the stored one, worse, better, or something else altogether."""
