"""`manifest.json`: what golfcore says of a dataset folder that it made. Written last, so its presence says complete."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from golfcore.base.errors import UserError
from golfcore.base.files import canonical_json, parse_json, sha256_text, write_json
from golfcore.data.contents import read

SCHEMA = "golfcore-data-1"
MANIFEST = "manifest.json"
OURS = {"data_hash", "digest"}  # no manifest of others has these keys
FACTS = {"schema", "files", "splits", "sources", "vocab_size", "sentencepiece"}


def data_hash(hashes: Mapping[str, str]) -> str:
    """The identity of a folder with a manifest: of each file's path below it and the SHA-256 of its content."""
    return sha256_text(canonical_json(dict(hashes)))


def write_manifest(folder: Path, hashes: Mapping[str, str], **facts: object) -> None:
    """Declare `folder` complete: `hashes` maps each file's path below it to its SHA-256, `facts` is added as it is."""
    files = {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in hashes.items()}
    manifest = {"schema": SCHEMA, "data_hash": data_hash(hashes), "files": files, **facts}
    write_json(folder / MANIFEST, manifest | {"digest": _digest(manifest)})


def read_manifest(folder: Path) -> dict:
    """The manifest that golfcore wrote into `folder`; {} if there is none or it is somebody else's.

    UserError: it is ours and not as it was written.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = parse_json(read(path, "a manifest").decode())
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected a manifest, found text that does not parse ({e})") from None
    if manifest.get("schema") != SCHEMA and not OURS & set(manifest):
        return {}
    problem = _problem(manifest)
    if problem:
        raise UserError(f"{path}: expected a manifest as golfcore wrote it, found {problem}")
    return manifest


def check_listed(folder: Path, manifest: Mapping, found: Iterable[Path]) -> None:
    """Hold the names and sizes of the files `found` against the manifest. UserError: one differs."""
    listed = manifest["files"]
    names = {item.relative_to(folder).as_posix() for item in found}
    for name in sorted(names - set(listed)):
        raise UserError(f"{folder / name}: expected only files that {MANIFEST} lists, found this one besides")
    for name, facts in listed.items():
        if name not in names:
            raise UserError(f"{folder / name}: expected this file, which {MANIFEST} lists, found no such file")
        size = (folder / name).stat().st_size
        if size != facts["bytes"]:
            raise UserError(f"{folder / name}: expected {facts['bytes']} bytes as {MANIFEST} lists, found {size}")


def check_contents(folder: Path, manifest: Mapping, digests: Mapping[Path, str]) -> None:
    """Hold the digests of the files against the manifest. UserError: the content of one changed."""
    for path, digest in digests.items():
        listed = manifest["files"][path.relative_to(folder).as_posix()]["sha256"]
        if digest != listed:
            raise UserError(
                f"{path}: expected the content that {MANIFEST} lists (sha256 {listed[:12]}), found {digest[:12]}"
            )


def _digest(manifest: Mapping) -> str:
    return sha256_text(canonical_json({key: value for key, value in manifest.items() if key != "digest"}))


def _problem(manifest: Mapping) -> str:
    """What is wrong with a manifest of ours; "" if nothing. Those of older versions have no digest of themselves."""
    if unknown := sorted(set(manifest) - FACTS - OURS):
        return f"the unknown key {unknown[0]!r}"
    if manifest.get("schema") != SCHEMA:
        return f"the schema {manifest.get('schema')!r} in place of {SCHEMA!r}"
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_file_entry(entry) for entry in files.values()):
        return "no list of files with their sizes and hashes"
    if manifest.get("data_hash") != data_hash({name: entry["sha256"] for name, entry in files.items()}):
        return "a data hash that is not the hash of the files it lists"
    if "digest" in manifest and manifest["digest"] != _digest(manifest):
        return "other content than its own digest says"
    return ""


def _is_file_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"sha256", "bytes"}
        and isinstance(entry["sha256"], str)
        and isinstance(entry["bytes"], int)
    )
