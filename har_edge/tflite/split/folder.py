"""Write a split into a folder: each file once, however many shards run it, and the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from har_edge.files import write_atomic
from har_edge.tflite.folder import replaced_folder
from har_edge.tflite.manifest import SliceManifest
from har_edge.tflite.split.program import SplitLayout


def write_split(layout: SplitLayout, folder: Path, beside: Mapping[str, bytes] = MappingProxyType({})) -> SliceManifest:
    """Write the files of a split, `manifest.json` and the files `beside` them; return the manifest with all hashes.

    Files with the same bytes are one file. Files of an earlier cut in the same folder are replaced. Raises ConfigError
    when the folder holds other files.
    """
    with replaced_folder(folder, beside) as draft:
        names, hashes = dict[str, str](), dict[str, str]()
        for name, step in layout.files.items():
            made = step.write()
            sha256 = hashlib.sha256(made).hexdigest()
            if sha256 not in hashes:
                hashes[sha256] = name
                write_atomic(folder / name, made)
            names[name] = sha256
            del made  # or the next file would be built while this one is still in memory
        draft.manifest = with_hashes(
            layout.manifest, {name: (hashes[sha256], sha256) for name, sha256 in names.items()}
        )
    return draft.manifest


def write_contents(layout: SplitLayout) -> tuple[SliceManifest, dict[str, bytes]]:
    """Return the manifest of a split with all hashes, and the content of each file by its hash."""
    files, contents, names = dict[str, tuple[str, str]](), dict[str, bytes](), dict[str, str]()
    for name, step in layout.files.items():
        made = bytes(step.write())
        sha256 = hashlib.sha256(made).hexdigest()
        contents[sha256] = made
        files[name] = names.setdefault(sha256, name), sha256
    return with_hashes(layout.manifest, files), contents


def with_hashes(manifest: SliceManifest, files: Mapping[str, tuple[str, str]]) -> SliceManifest:
    """Return the manifest with the final name and the hash of each file."""
    entries = []
    for entry in manifest.slices:
        steps = tuple(
            msgspec.structs.replace(step, file=files[step.file][0], sha256=files[step.file][1]) for step in entry.steps
        )
        file, sha256 = files[entry.file]
        entries.append(msgspec.structs.replace(entry, file=file, sha256=sha256, steps=steps))
    return msgspec.structs.replace(manifest, slices=tuple(entries))
