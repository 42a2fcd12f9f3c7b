"""Loads quambench's pytest plug-in for suites/ and tests/ alike."""

pytest_plugins = ["quambench.pytest_plugin"]
