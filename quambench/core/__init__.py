"""The ground that every room stands on: errors, files, reading, processes, git, provenance. It knows nothing of
models.
"""
