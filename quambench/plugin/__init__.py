"""pytest: options, which cases a suite runs, what is absent, how work is spread."""
