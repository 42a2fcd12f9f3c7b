"""The version of an installed quambench."""

from __future__ import annotations

from importlib import metadata


def installed() -> str:
    """Return the version that the installed distribution names; "unknown" where the package is merely on the path."""
    try:
        return metadata.version("quambench")
    except metadata.PackageNotFoundError:
        return "unknown"
