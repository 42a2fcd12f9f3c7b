"""Benchmark and regression suite for the INT8 calibration of Mamba and Mamba2 models.

`quambench.__version__` is the version that pyproject.toml names. It is looked up when it is first asked for.
"""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """Return `__version__`; every other name is unknown. Importing the package reads no file for it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    version = globals()[name] = _version()
    return version


def _version() -> str:
    """The version of the checkout that this folder lies in, else of the installed distribution, else "unknown"."""
    import tomllib
    from pathlib import Path

    from quambench.core.version import installed

    # A checkout may lie on the path beside an older installation: what its own pyproject.toml says wins.
    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        if project["name"] == __name__:
            return str(project["version"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # an installed package has none beside it, and that of a stranger is none of ours
    return installed()
