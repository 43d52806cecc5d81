"""The seeded media: pictures, text and a big file, each made the same way every time."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

TULIPS = Path(__file__).parent / "legacy_files/tulips.jpg"
BIG = 5 * 1024 * 1024

# Width, height, method: the five sizes of the configuration, and one made on demand.
THUMBNAILS = (
    (32, 32, "crop"),
    (96, 96, "crop"),
    (320, 240, "scale"),
    (640, 480, "scale"),
    (200, 150, "crop"),
)


@dataclass(frozen=True)
class File:
    """Something to upload."""

    name: str
    content_type: str
    data: bytes

    @property
    def picture(self) -> bool:
        return self.content_type.startswith("image/")


def png(width: int, height: int, seed: int) -> bytes:
    """A PNG picture with stripes whose colours come from the seed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            rows += bytes(((x * seed) % 256, (y * 3 + seed) % 256, ((x ^ y) + seed * 7) % 256))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(bytes(rows), 6)),
            chunk(b"IEND", b""),
        )
    )


def gif(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A GIF picture of one colour, written without compression (each code is a literal)."""
    table = bytes(colour) + bytes(3) + bytes(6)
    codes, bits = 0, 0
    # LZW minimum code size 2: codes of 3 bits; a clear code (4) every second pixel keeps them so.
    stream: list[int] = []
    for pixel in range(width * height):
        if pixel % 2 == 0:
            stream.append(4)
        stream.append(0)
    stream.append(5)
    out = bytearray()
    for code in stream:
        codes |= code << bits
        bits += 3
        while bits >= 8:
            out.append(codes & 255)
            codes >>= 8
            bits -= 8
    if bits:
        out.append(codes & 255)
    blocks = b"".join(
        bytes((len(out[i : i + 255]),)) + out[i : i + 255] for i in range(0, len(out), 255)
    )
    return b"".join(
        (
            b"GIF89a",
            struct.pack("<HHBBB", width, height, 0x91, 0, 0),
            table,
            struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0),
            b"\x02",
            bytes(blocks),
            b"\x00;",
        )
    )


def jpeg(comment: str) -> bytes:
    """The picture of the tulips, made another file by a comment in it."""
    data = TULIPS.read_bytes()
    text = comment.encode()
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[2:]


@lru_cache(maxsize=1)
def files() -> tuple[File, ...]:
    """All seeded files but the avatars."""
    sizes = ((64, 64), (120, 80), (320, 200), (400, 300), (640, 360), (33, 700), (700, 33), (1, 1))
    result = [
        File(f"tulip-{w}x{h}.png", "image/png", png(w, h, 3 + number))
        for number, (w, h) in enumerate(sizes)
    ]
    result += [File(f"beet-{n}.jpg", "image/jpeg", jpeg(f"bed number {n}")) for n in range(6)]
    result += [
        File(f"seed-{n}.gif", "image/gif", gif(40 + 10 * n, 30, (60 * n, 200 - 40 * n, 90)))
        for n in range(4)
    ]
    result += [
        File("einkauf.txt", "text/plain", "Zwiebeln, Dünger, Gießkanne\n".encode() * 200),
        File("empty-ish.txt", "text/plain", b"\n"),
        File("plan.csv", "text/csv", b"bed;flower\n1;tulip\n2;\xe2\x80\xa6\n"),
        File("Blütenfülle & схема 庭.png", "image/png", png(90, 60, 77)),
        File("Gästebuch für Übermorgen.pdf", "application/pdf", b"%PDF-1.4\n" + bytes(5000)),
        File("video.bin", "application/octet-stream", random.Random(1987).randbytes(BIG)),
        File("not-nice.png", "image/png", png(50, 50, 99)),
    ]
    return tuple(result)


QUARANTINED = "not-nice.png"


def avatar(number: int) -> File:
    """The avatar of the numbered person."""
    return File(f"avatar-{number}.png", "image/png", png(128, 128, 11 + number))
