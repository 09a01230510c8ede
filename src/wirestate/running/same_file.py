"""Decides whether two names are one file, whatever they are written like."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Mapping
from urllib.parse import unquote

from wirestate.running.files import local_path

_ALIASES = {"s3a": "s3", "gcs": "gs", "ssh": "sftp", "abfss": "abfs", "az": "abfs", "webhdfs": "hdfs"}
_PORTS = {"http": 80, "https": 443, "ftp": 21, "sftp": 22}
_Key = tuple[object, ...]


def shared_file(written: Mapping[str, object], read: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the names of two of these paths that are one file and of which one is written, None if there are none.

    Args:
        written: name, such as ``sink``, to the path or URL that will be written; what is no path is no file.
        read: the same of files that are only read.
    """
    seen: dict[_Key, str] = {}
    for name, path in (*read.items(), *written.items()):
        key = _key(path)
        if key is not None:
            other = seen.setdefault(key, name)
            if other != name and name in written:
                return name, other
    return None


def _key(path: object) -> _Key | None:
    """Return what is equal for all names of one file; None for what loses nothing when it is opened twice."""
    if not isinstance(path, str | os.PathLike):
        return None
    local = local_path(path)
    return _url_key(os.fspath(path)) if local is None else _local_key(local)


def _local_key(path: str) -> _Key | None:
    real = os.path.realpath(path)  # a link that leads to nothing yet is its target's name
    try:
        found = os.stat(path)
    except OSError:
        return (*_folder_key(os.path.dirname(real)), os.path.normcase(os.path.basename(real)))
    # A terminal and /dev/null hold nothing that a second writer could destroy.
    return None if stat.S_ISCHR(found.st_mode) else (found.st_dev, found.st_ino)


def _folder_key(folder: str) -> _Key:
    try:
        found = os.stat(folder)
    except OSError:
        return (os.path.normcase(folder),)
    return found.st_dev, found.st_ino


def _url_key(url: str) -> _Key | None:
    last = url.rsplit("::", 1)[-1].partition("?versionId=")[0]  # of a chain, what the others are kept in
    local = local_path(last)
    if local is not None:
        return _local_key(local)
    scheme, rest = last.split("://", 1)
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if scheme == "memory":
        return scheme, _normal(rest)
    host, _, path = rest.partition("/")
    if scheme in ("http", "https"):
        path = unquote(path.partition("#")[0])
    host = host.rpartition("@")[2].lower().removesuffix(f":{_PORTS.get(scheme)}")
    return scheme, host, _normal(path)


def _normal(path: str) -> str:
    return posixpath.normpath(path.lstrip("/"))  # of two slashes at the beginning it would keep both
