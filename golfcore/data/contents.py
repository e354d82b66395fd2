"""The files of a dataset folder and `manifest.json`, the list of them in a folder that golfcore made.

It is written last: its presence says that all is there.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from golfcore.base.errors import UserError
from golfcore.base.files import check, read_json, sha256_json, write_json

MANIFEST = "manifest.json"
SCHEMA = "golfcore-data-2"
LISTED = {"schema": str, "data_hash": str, "files": {"*": {"sha256": str}}}


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files below `folder` with one of `suffixes`, in the order of their paths.

    Links are followed; what begins with a dot (checkpoints of editors, staging folders) is left out.
    OSError: a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(root)
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        if place not in seen:
            found += [Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix in suffixes]
        seen.add(place)
    return sorted(found)


def write_manifest(folder: Path, hashes: Mapping[str, str], **facts: object) -> None:
    """Declare `folder` complete: `hashes` maps each file's path below it to its SHA-256, `facts` is added as it is.

    The data hash, which is the folder's identity, is that of `hashes`.
    """
    files = {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in hashes.items()}
    manifest = {"schema": SCHEMA, "data_hash": sha256_json(hashes), "files": files, **facts}
    write_json(folder / MANIFEST, manifest | {"digest": sha256_json(manifest)})


def read_manifest(folder: Path) -> dict:
    """The manifest that golfcore wrote into `folder`; {} if there is none or it is somebody else's.

    UserError: it is ours and not as it was written.
    """
    path = folder / MANIFEST
    manifest = read_json(path, "a manifest") if path.exists() else {}
    if manifest.get("schema") != SCHEMA and not {"data_hash", "digest"} & manifest.keys():
        return {}
    contents = {key: value for key, value in manifest.items() if key != "digest"}
    if manifest.get("digest") != sha256_json(contents):
        raise UserError(f"{path}: expected a manifest as golfcore wrote it, found other content than its digest says")
    check(manifest, LISTED, f"{path}: expected a manifest")
    return manifest


def check_contents(folder: Path, manifest: Mapping, found: Mapping[Path, str]) -> None:
    """Hold the digests of the files `found` against the manifest. UserError: another file, one less, other content."""
    listed = {folder / name: facts["sha256"] for name, facts in manifest["files"].items()}
    for path in sorted(listed.keys() | found.keys()):
        if path not in listed:
            raise UserError(f"{path}: expected only files that {MANIFEST} lists, found this one besides")
        if path not in found:
            raise UserError(f"{path}: expected this file, which {MANIFEST} lists, found no such file")
        if found[path] != listed[path]:
            raise UserError(
                f"{path}: expected the content that {MANIFEST} lists (sha256 {listed[path][:12]}), "
                f"found {found[path][:12]}"
            )
