"""The compression of a batch's records: gzip, snappy, lz4 and zstd, in the framings Kafka's clients use.

Snappy is xerial's framing (snappy-java's stream), which Java writes; librdkafka may send one bare snappy block, so that
is read as well. LZ4 is the standard frame format.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import cramjam

from raftlog.environment import Buffer
from raftlog.errors import CorruptMessage, MessageTooLarge

OUTPUT_BYTES_MIN: Final = 1 << 16  # First guess at how much is in there, when it is not told.
OUTPUT_GROWTH: Final = 4  # The next guess after one that was too small.

XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = XERIAL_MAGIC + struct.pack(">ii", 1, 1)  # Version, oldest compatible version.
_XERIAL_BLOCK_BYTES: Final = 32 * 1024
_INT32: Final = struct.Struct(">i")
_OUTPUT_IS_FULL: Final = "failed to write whole buffer"  # The only thing that tells it from damage; a test holds it.


class Compression(enum.IntEnum):
    """The three lowest bits of a batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


_INTO: Final[Mapping[int, Callable[[Buffer, bytearray], Any]]] = {
    Compression.GZIP: cramjam.gzip.decompress_into,
    Compression.LZ4: cramjam.lz4.decompress_into,
    Compression.ZSTD: cramjam.zstd.decompress_into,
}


def compress(data: Buffer, compression: Compression, *, level: int | None = None) -> bytes:
    """`data` compressed and framed as Kafka's clients expect it; `level` as the codec names it, None for its own default."""
    match compression:
        case Compression.NONE:
            return bytes(data)
        case Compression.GZIP:
            return bytes(cramjam.gzip.compress(data, level=None if level == -1 else level))
        case Compression.SNAPPY:
            return _compress_xerial(data)
        case Compression.LZ4:
            # Kafka's Java reader refuses blocks that depend on earlier ones. The batch's CRC does for a content checksum.
            encoder = cramjam.lz4.Compressor(level=level, content_checksum=False, block_linked=False)
            encoder.compress(data if isinstance(data, bytes) else bytes(data))
            return bytes(encoder.finish())
        case Compression.ZSTD:
            return bytes(cramjam.zstd.compress(data, level=level))


def decompress(data: Buffer, compression: int) -> bytes:
    """The records of a batch whose attributes name `compression`. Raises CorruptMessage when they can't be read."""
    try:
        match compression:
            case Compression.NONE:
                return bytes(data)
            case Compression.GZIP:
                return bytes(cramjam.gzip.decompress(data))
            case Compression.SNAPPY:
                return _decompress_snappy(memoryview(data))
            case Compression.LZ4:
                return bytes(cramjam.lz4.decompress(data))
            case Compression.ZSTD:
                return bytes(cramjam.zstd.decompress(data))
    except (cramjam.DecompressionError, struct.error) as error:
        raise CorruptMessage(f"records can't be decompressed: {error}") from None
    raise CorruptMessage(f"unknown compression {compression}")


def decompress_bounded(data: Buffer, compression: int, *, size_bytes_max: int) -> Buffer:
    """As `decompress`, but never more than `size_bytes_max` bytes are made: what a few bytes blow up to is not known before.

    Raises CorruptMessage, and MessageTooLarge where there is more.
    """
    if compression == Compression.NONE:
        if len(data) > size_bytes_max:
            raise _too_large(size_bytes_max)
        return data
    if compression == Compression.SNAPPY:
        return _decompress_snappy(memoryview(data), size_bytes_max=size_bytes_max)
    inflate = _INTO.get(compression)
    if inflate is None:
        raise CorruptMessage(f"unknown compression {compression}")
    size_bytes = min(max(len(data) * OUTPUT_GROWTH, OUTPUT_BYTES_MIN), size_bytes_max)
    while True:
        output = bytearray(size_bytes)
        try:
            return memoryview(output)[: inflate(data, output)]
        except cramjam.DecompressionError as error:
            if _OUTPUT_IS_FULL not in str(error):
                raise CorruptMessage(f"records can't be decompressed: {error}") from None
            if size_bytes >= size_bytes_max:
                raise _too_large(size_bytes_max) from None
            size_bytes = min(size_bytes * OUTPUT_GROWTH, size_bytes_max)


def _too_large(size_bytes_max: int) -> MessageTooLarge:
    return MessageTooLarge(f"the records of the batch take more than {size_bytes_max} bytes when decompressed")


def _compress_xerial(data: Buffer) -> bytes:
    view = memoryview(data)
    parts = [_XERIAL_HEADER]
    for start in range(0, len(view), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (_INT32.pack(len(block)), block)
    return b"".join(parts)


def _decompress_snappy(view: memoryview, *, size_bytes_max: int | None = None) -> bytes:
    parts = []
    size_bytes_left = size_bytes_max
    for block in _snappy_blocks(view):
        try:
            if size_bytes_left is not None:
                size_bytes_left -= cramjam.snappy.decompress_raw_len(block)
                if size_bytes_left < 0:
                    assert size_bytes_max is not None
                    raise _too_large(size_bytes_max)
            parts.append(bytes(cramjam.snappy.decompress_raw(block)))
        except cramjam.DecompressionError as error:
            raise CorruptMessage(f"records can't be decompressed: {error}") from None
    return b"".join(parts)


def _snappy_blocks(view: memoryview) -> Iterator[memoryview]:
    if bytes(view[: len(XERIAL_MAGIC)]) != XERIAL_MAGIC:
        yield view
        return
    position = len(_XERIAL_HEADER)
    while position < len(view):
        if position + _INT32.size > len(view):
            raise CorruptMessage("a snappy block's size is cut")
        (size,) = _INT32.unpack_from(view, position)
        position += _INT32.size
        if size < 0 or position + size > len(view):
            raise CorruptMessage("a snappy block reaches beyond its batch")
        yield view[position : position + size]
        position += size
