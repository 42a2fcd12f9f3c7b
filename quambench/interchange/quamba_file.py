"""Files with what Quamba's quantizer takes: a dict for torch.load(weights_only=True).

act_scales      as interchange/quamba.py describes them
reorder_params  as described there, or None
made_of         in files from here: schema, digests of model, data and scales, site -> observer, digest of the code
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quambench.calibration.scales import Calibration
from quambench.core import files
from quambench.core.errors import BadArtefact
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, check_archive, is_file, is_folder, shown, text
from quambench.interchange.quamba import from_act_scales, to_act_scales
from quambench.models.checkpoint import Checkpoint

SCHEMA = 1


def write(path: Path, calibration: Calibration, code: str) -> None:
    """Write the file whole or not at all, in place of one of that name; its folder is made where it is missing.

    code  digest of the code that writes (quambench/core/provenance.py)
    raises BadParameter where Quamba has no place for a scale
    """
    act_scales, reorder_params = to_act_scales(calibration)
    made_of = {
        "schema": SCHEMA,
        "model_digest": calibration.model_digest,
        "data_digest": calibration.data_digest,
        "scales_digest": calibration.digest,
        "observers": dict(calibration.observers),
        "quambench": code,
    }
    content = io.BytesIO()  # not the path: torch.save puts a file's name into its bytes
    torch.save({"act_scales": act_scales, "reorder_params": reorder_params, "made_of": made_of}, content)
    files.write(path, content.getvalue())


def read(path: Path, checkpoint: Checkpoint) -> Calibration:
    """Read a file from `write`, or one that Quamba's own objects were saved to: the dict without made_of, or the list
    alone.

    raises BadArtefact where it is missing, corrupt, of another model, or not what its made_of describes
    """
    act_scales, reorder_params, made_of = _parts(path)
    of = {} if made_of is None else {key: made_of.get(key) for key in ("schema", "model_digest", "scales_digest")}
    if of and (type(of["schema"]) is not int or of["schema"] != SCHEMA):
        raise BadArtefact(f"{path}: made_of is of schema {shown(of['schema'])}, this version reads {SCHEMA}")
    if of and not (text(of["model_digest"]) and of["model_digest"] == checkpoint.digest):
        raise BadArtefact(f"{path}: these scales were made for another model than {checkpoint.name!r}")
    try:
        found = from_act_scales(act_scales, reorder_params, checkpoint.config, model_digest=checkpoint.digest)
    except BadArtefact as error:
        raise BadArtefact(f"{path}: {error}") from None
    if made_of is None:
        return found
    observers, data_digest = made_of.get("observers"), made_of.get("data_digest")
    if (
        not (isinstance(observers, dict) and isinstance(data_digest, str))
        or observers.keys() != found.scales.keys()
        or not all(map(text, observers.values()))
    ):
        raise BadArtefact(f"{path}: made_of must name the data and each site's observer")
    if not text(of["scales_digest"]) or found.digest != of["scales_digest"]:
        raise BadArtefact(f"{path}: not the scales that made_of describes; leave it out of a file that you changed")
    return replace(found, observers={site: observers[site] for site in found.scales}, data_digest=data_digest)


def _parts(path: Path) -> tuple[Any, Any, Mapping[str, Any] | None]:
    """Return act_scales, reorder_params and made_of. raises BadArtefact"""
    if not is_file(path):
        raise BadArtefact(f"{shown(path)} is {'a folder, not a file' if is_folder(path) else 'no file'}")
    check_fetched(path, BadArtefact)
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Unreadable as error:
        raise BadArtefact(f"{shown(path)}: {error.why}") from None
    except Exception:  # torch raises whatever the corrupt part trips, and its message recommends an unsafe load
        raise BadArtefact(
            f"{path} is nothing that torch.load(weights_only=True) can read: cut short, not from torch.save, or with "
            "more in it than tensors, lists, dicts and numbers"
        ) from None
    if isinstance(content, list):
        return content, None, None
    if not isinstance(content, dict) or "act_scales" not in content:
        raise BadArtefact(f"{path} must hold a dict with act_scales and reorder_params, or the list of act_scales")
    made_of = content.get("made_of")
    if made_of is not None and not isinstance(made_of, dict):
        raise BadArtefact(f"{path}: made_of must be a dict (got {type(made_of).__name__})")
    return content["act_scales"], content.get("reorder_params"), made_of
