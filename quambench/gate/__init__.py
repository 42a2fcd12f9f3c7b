"""The gate: is this result the stored one, worse, better, or something else altogether?"""
