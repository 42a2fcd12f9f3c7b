"""The place of a checkpoint's files: a local folder, or a repository of the Hugging Face hub.

The hub's own client does the fetching, so its cache (HF_HOME, HF_HUB_CACHE), its login (HF_TOKEN) and its offline mode
(HF_HUB_OFFLINE) are respected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quambench.core.errors import BadCheckpoint, MissingExtra
from quambench.core.reading import is_file
from quambench.models.weights import one_line

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w./-]*))?")
_MEGATRON = "latest_checkpointed_iteration.txt"
_CONVERT = "; a checkpoint of Megatron must be converted to one of transformers or state-spaces first"


class Place(Protocol):
    """A set of files, by name."""

    @property
    def origin(self) -> str:
        """The place as provenance names it: no path, host or user name."""

    def find(self, file: str) -> Path | None:
        """Return the path where the file lies now; None where there is none. raises BadCheckpoint, MissingExtra"""

    def lacks(self, what: str) -> BadCheckpoint:
        """Return the error that `what` is not there."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder."""

    path: Path
    origin: str = "folder"

    def __str__(self) -> str:
        return str(self.path)

    def find(self, file: str) -> Path | None:
        return self.path / file if is_file(self.path / file) else None

    def lacks(self, what: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self} has no {what}{_CONVERT if self.find(_MEGATRON) else ''}")


@dataclass(slots=True)
class Repository:
    """A model of the hub, at one revision: all its files come from the commit of the first one fetched."""

    name: str  # "org/name"
    revision: str = ""  # a branch, tag or commit; "" for the default branch
    _commit: str = ""
    _unreachable: bool = False  # a file was neither in the cache nor to be had

    @classmethod
    def parse(cls, text: str) -> Repository | None:
        """Read "org/name" or "org/name@revision"; None for anything else."""
        parts = _HUB_NAME.fullmatch(text)
        return cls(parts[1], parts[2] or "") if parts else None

    def __str__(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")

    @property
    def short(self) -> str:
        """The name for ids and file names: "mamba-130m", "mamba-130m@refs-pr-1"."""
        return self.name.rpartition("/")[2] + (f"@{self.revision.replace('/', '-')}" if self.revision else "")

    @property
    def origin(self) -> str:
        """ "hub org/name@commit"."""
        return f"hub {self.name}@{self._commit}" if self._commit else f"hub {self}"

    def find(self, file: str) -> Path | None:
        try:
            from huggingface_hub import errors, hf_hub_download
        except ImportError:
            raise MissingExtra("huggingface_hub", "hub") from None
        try:
            path = Path(hf_hub_download(self.name, file, revision=self._commit or self.revision or None))
        except errors.LocalEntryNotFoundError:
            self._unreachable = True
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError:
            raise self._failed("it is gated: accept its terms on its page, and log in (hf auth login)") from None
        except errors.RevisionNotFoundError:
            raise self._failed(f"it has no revision {self.revision!r}") from None
        except errors.RepositoryNotFoundError:
            raise self._failed(
                "there is none of that name, or it is private and you are not logged in (hf auth login)"
            ) from None
        except Exception as error:  # network, disk, validation: the client has no common base for them
            raise self._failed(one_line(error)) from None
        if path.parent.parent.name == "snapshots":
            self._commit = path.parent.name
        return path

    def lacks(self, what: str) -> BadCheckpoint:
        if self._unreachable:
            return self._failed(f"the local cache has no {what}, and the hub cannot be reached")
        return BadCheckpoint(f"{self} has no {what}{_CONVERT if what == 'config.json' else ''}")

    def _failed(self, why: str) -> BadCheckpoint:
        return BadCheckpoint(
            f"{self} could not be fetched from the Hugging Face hub: {why}; a local folder or a bundled model works too"
        )
