"""The four files of MNIST: their hashes, and where they are found (LeCun et al., Proc. IEEE 86(11), 1998)."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.data.locate import DEFAULT_FOLDER, VARIABLE
from har_edge.errors import DataError

FOLDER = "mnist"
LICENCE = "MNIST, LeCun, Cortes and Burges, CC BY-SA 3.0"
# The first that answers is used. The last one is the original place, which often refuses.
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file that is packed with gzip. Size in bytes and SHA-256 are those of its content.

    Mirrors pack the same content into different bytes, so the hash of what they send says nothing.
    """

    name: str
    size: int
    sha256: str

    def verify(self, path: Path) -> None:
        """Raise DataError unless a file holds this content; it reads no more than that."""
        digest, count = hashlib.sha256(), 0
        try:
            with gzip.open(path, "rb") as content:
                while count <= self.size and (piece := content.read(_PIECE_BYTES)):
                    digest.update(piece)
                    count += len(piece)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path.name} is not packed with gzip, or damaged: {error}") from error
        if count != self.size or digest.hexdigest() != self.sha256:
            came = f"{count} bytes" if count < self.size else "more bytes" if count > self.size else "others"
            raise DataError(
                f"{path.name} does not hold {self.name} of MNIST: {came} came, expected {self.size} bytes with sha256 "
                f"{self.sha256}"
            )

    def is_at(self, path: Path) -> bool:
        """Return whether a file is there and holds this content."""
        if not path.is_file():
            return False
        try:
            self.verify(path)
        except DataError:
            return False
        return True


FILES = (
    PackedFile(
        "train-images-idx3-ubyte.gz", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    PackedFile("train-labels-idx1-ubyte.gz", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    PackedFile(
        "t10k-images-idx3-ubyte.gz", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    PackedFile("t10k-labels-idx1-ubyte.gz", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


def find_mnist(files: Sequence[PackedFile] = FILES) -> Path | None:
    """Return the folder with all files of MNIST: $HAR_EDGE_DATA, ./data, or `mnist` in one of them; None without."""
    variable = os.environ.get(VARIABLE)
    for base in (*([Path(variable)] if variable else []), DEFAULT_FOLDER):
        for folder in (base / FOLDER, base):
            if all((folder / file.name).is_file() for file in files):
                return folder
    return None
