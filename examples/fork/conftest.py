"""Puts this repository's calibration code under the gate: pytest suites/"""

pytest_plugins = ["quambench.pytest_plugin"]
