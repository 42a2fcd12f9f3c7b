"""What every room stands on: errors, files, reading, processes, git, provenance; knows nothing of models."""
