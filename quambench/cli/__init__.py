"""The command line: one command a file, each with `arguments` and `run`."""
