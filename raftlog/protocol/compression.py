"""The compression of a batch's records: gzip, snappy, lz4 and zstd, in the framings Kafka's clients use.

Snappy is xerial's framing (snappy-java's stream), which Java writes; librdkafka may send one bare snappy block, so that
is read as well. LZ4 is the standard frame format.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import cramjam

from raftlog.environment import Buffer
from raftlog.errors import CorruptMessage

XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = XERIAL_MAGIC + struct.pack(">ii", 1, 1)  # Version, oldest compatible version.
_XERIAL_BLOCK_BYTES: Final = 32 * 1024
_INT32: Final = struct.Struct(">i")


class Compression(enum.IntEnum):
    """The three lowest bits of a batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


def compress(data: Buffer, compression: Compression) -> bytes:
    """`data` compressed and framed as Kafka's clients expect it."""
    match compression:
        case Compression.NONE:
            return bytes(data)
        case Compression.GZIP:
            return bytes(cramjam.gzip.compress(data))
        case Compression.SNAPPY:
            return _compress_xerial(data)
        case Compression.LZ4:
            # Kafka's Java reader refuses blocks that depend on earlier ones. The batch's CRC does for a content checksum.
            encoder = cramjam.lz4.Compressor(content_checksum=False, block_linked=False)
            encoder.compress(data)
            return bytes(encoder.finish())
        case Compression.ZSTD:
            return bytes(cramjam.zstd.compress(data))


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


def _compress_xerial(data: Buffer) -> bytes:
    view = memoryview(data)
    parts = [_XERIAL_HEADER]
    for start in range(0, len(view), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (_INT32.pack(len(block)), block)
    return b"".join(parts)


def _decompress_snappy(view: memoryview) -> bytes:
    if bytes(view[: len(XERIAL_MAGIC)]) != XERIAL_MAGIC:
        return bytes(cramjam.snappy.decompress_raw(view))
    parts = []
    position = len(_XERIAL_HEADER)
    while position < len(view):
        (size,) = _INT32.unpack_from(view, position)
        position += _INT32.size
        if size < 0 or position + size > len(view):
            raise CorruptMessage("a snappy block reaches beyond its batch")
        parts.append(bytes(cramjam.snappy.decompress_raw(view[position : position + size])))
        position += size
    return b"".join(parts)
