"""The general compressors behind entropy coding; each refuses to expand a code to more than its input can have been."""

from __future__ import annotations

import zlib
from typing import Any

from har_edge.errors import ConfigError
from har_edge.extras import require

# Operations for each byte up to a level: nanoseconds of one core on codes of 1 to 9 kB, one operation each.
_ZLIB_OPERATIONS = ((3, 20), (6, 25), (9, 50))
_ZSTD_OPERATIONS = ((4, 6), (10, 20), (16, 90), (19, 170), (22, 490))


class Zlib:
    """Compresses to the zlib format (RFC 1950) with the library of that name, which is part of Python."""

    def __init__(self, level: int) -> None:
        """Build for level 1 (quick) to 9 (small)."""
        if not 1 <= level <= 9:
            raise ConfigError(f"zlib:{level}: expected a level of 1 to 9")
        self.spec = f"zlib:{level}"
        self._level = level
        self.operations_a_byte = _look_up(_ZLIB_OPERATIONS, level)

    def compress(self, text: bytes) -> bytes:
        """Compress."""
        return zlib.compress(text, self._level)

    def expand(self, text: bytes, most: int) -> bytes:
        """Undo `compress`. Raises ValueError for other bytes, or more than `most` bytes of content."""
        stream = zlib.decompressobj()
        try:
            made = stream.decompress(text, most + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if len(made) > most:
            raise ValueError(f"expected at most {most} bytes")
        if not stream.eof or stream.unused_data:
            raise ValueError("it ends too early" if not stream.eof else "bytes follow its end")
        return made


class Zstandard:
    """Compresses to the Zstandard format (RFC 8878), with the content size in the frame; extra `zstd`."""

    def __init__(self, level: int) -> None:
        """Build for level 1 (quick) to 22 (small). Raises ConfigError when the package `zstandard` is missing."""
        if not 1 <= level <= 22:
            raise ConfigError(f"zstd:{level}: expected a level of 1 to 22")
        require(f"zstd:{level}", "zstandard", instead=", or use zlib")
        import zstandard

        self.spec = f"zstd:{level}"
        self._library: Any = zstandard
        self._compressor = self._library.ZstdCompressor(level=level)
        self._expander = self._library.ZstdDecompressor()
        self.operations_a_byte = _look_up(_ZSTD_OPERATIONS, level)

    def compress(self, text: bytes) -> bytes:
        """Compress."""
        made: bytes = self._compressor.compress(text)
        return made

    def expand(self, text: bytes, most: int) -> bytes:
        """Undo `compress`. Raises ValueError for other bytes, or a claim of more than `most` bytes of content."""
        try:
            # The library allocates what the frame claims, so the claim is checked first; unknown is the largest size.
            said = self._library.get_frame_parameters(text).content_size
            if said > most:
                raise ValueError(f"expected at most {most} bytes")
            made: bytes = self._expander.decompress(text, max_output_size=most, allow_extra_data=False)
        except self._library.ZstdError as error:
            raise ValueError(str(error)) from None
        return made


def _look_up(table: tuple[tuple[int, int], ...], level: int) -> int:
    return next(operations for top, operations in table if level <= top)
