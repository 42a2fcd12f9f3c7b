"""How long a kernel takes, always as a ratio of two calls measured in turn in one run."""
