#!/usr/bin/env python3
"""Writes the named inputs of corpus/: `REASON@what`, where REASON is the outcome, or `ok`.

Every input is made by hand here, so that no other program's idea of a format is in it.
"""

import base64
import bz2
import gzip
import hashlib
import json
import lzma
import pathlib
import struct
import zlib

CORPUS = pathlib.Path(__file__).parent / "corpus"
BLOCK = 512


def pad(data):
    return data + bytes(-len(data) % BLOCK)


def header(kind, name, size=0, **fields):
    """A POSIX header: mode 0644, owner 0:0, time 0; other fields by name, as bytes."""
    at = {"mode": 100, "uid": 108, "gid": 116, "octets": 124, "mtime": 136, "checksum": 148, "link": 157,
          "magic": 257, "major": 329, "minor": 337, "prefix": 345, "mark": 508}
    block = bytearray(BLOCK)
    values = {"mode": b"0000644\0", "octets": b"%011o\0" % size, "magic": b"ustar\x0000"} | fields
    block[: len(name)] = name
    block[156:157] = kind
    for field, value in values.items():
        block[at[field] : at[field] + len(value)] = value
    if "checksum" not in fields:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def file(name=b"a", data=b"data", kind=b"0", **fields):
    return header(kind, name, len(data), **fields) + pad(data)


def extension(kind, body):
    return file(b"././ext", body, kind)


def record(key, value):
    rest = len(key) + len(value) + 3
    size = next(n for n in range(rest, rest + 9) if len(str(n)) + rest == n)
    return b"%d %s=%s\n" % (size, key, value)


def pax(*records, kind=b"x"):
    return extension(kind, b"".join(record(*r) for r in records))


def sparse(records, data):
    return pax(*records) + file(b"GNUSparseFile.0/s", data)


V0 = [(b"GNU.sparse.size", b"9999"), (b"GNU.sparse.numblocks", b"1")]
V1 = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"),
      (b"GNU.sparse.realsize", b"9999")]
END = bytes(2 * BLOCK)
F = file()

TAR = {
    # The seven on which Go, the crate `tar` and the crate `tar-core` were found to differ.
    "tar.name.conflict@pax-path-and-gnu-long-name": pax((b"path", b"p")) + extension(b"L", b"l\0") + F + END,
    "ok@pax-path-twice": pax((b"path", b"p"), (b"path", b"q")) + F + END,
    "ok@pax-negative-fraction": pax((b"mtime", b"-1.5")) + F + END,
    "tar.extension.repeated@two-pax-headers": pax((b"path", b"p")) + pax((b"path", b"q")) + F + END,
    "ok@nul-type-directory": header(b"\0", b"d/") + END,
    "tar.checksum@directory-with-data": file(b"d", b"five.", b"5") + END,
    "tar.pax.global@path": pax((b"path", b"p"), kind=b"g") + F + END,
    # What is read.
    "ok@empty": b"",
    "ok@one-zero-block": F + bytes(BLOCK),
    "ok@junk-after-the-end": F + END + b"junk",
    "ok@no-padding": F[: BLOCK + 4],
    "ok@every-type": b"".join(header(k, b"n", link=b"t") for k in (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"\0")),
    "ok@gnu-long-names": extension(b"L", b"n" * 300 + b"\0") + extension(b"K", b"t" * 300 + b"\0") + header(b"2", b"n", link=b"t", magic=b"ustar  \0") + END,
    "ok@dialects": F + file(magic=bytes(8)) + file(magic=b"ustar  \0", prefix=b"14000000000") + file(prefix=b"dir") + file(prefix=b"p" * 131 + b"00000000000 00000000000 ", mark=b"tar\0"),
    "ok@base-256": file(uid=b"\x80\0\0\0\0\x20\0\0", mtime=b"\xff" * 11 + b"\xfe", octets=b"\x80" + bytes(10) + b"\x04"),
    "ok@pax-all": pax((b"path", b"p"), (b"linkpath", b""), (b"size", b"4"), (b"uid", b"1"), (b"gid", b"2"), (b"mtime", b"1.000000001"), (b"SCHILY.xattr.user.a", b"v\0\n="), (b"SCHILY.xattr.trusted.overlay.opaque", b"y"), (b"comment", b"")) + F + END,
    "ok@directory-with-a-size": header(b"5", b"d", 5) + F + END,
    "ok@global-header-last": F + pax((b"comment", b"c"), kind=b"g") + END,
    "ok@gnu-prefix": file(magic=b"ustar  \0", prefix=b"dir") + END,
    "ok@one-name-twice": pax((b"path", b"l")) + extension(b"L", b"l\0") * 2 + F + END,
    "ok@global-comment": pax((b"comment", b"c"), kind=b"g") + F + END,
    "ok@sparse-0.0": sparse(V0 + [(b"GNU.sparse.offset", b"5000"), (b"GNU.sparse.numbytes", b"4")], b"data"),
    "ok@sparse-0.1": sparse(V0 + [(b"GNU.sparse.name", b"s"), (b"GNU.sparse.map", b"5000,4")], b"data"),
    "ok@sparse-1.0": sparse(V1, pad(b"2\n5000\n4\n9999\n0\n") + b"data"),
    # What is refused, one for each reason.
    "tar.truncated.header@half-a-header": F + F[:256],
    "tar.foreign@xz": b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F" + bytes(20),
    "tar.foreign@bzip2-a-block-long": b"BZh91AY&SY" + bytes(600),
    "tar.truncated.data@no-data": F[:BLOCK],
    "tar.truncated.extension@no-body": pax((b"path", b"p"))[:BLOCK],
    "tar.zero-block@in-the-middle": F + bytes(BLOCK) + F + END,
    "tar.checksum@wrong": file(checksum=b"000000\0 ") + END,
    "tar.magic@unknown": file(magic=b"ustar 00") + END,
    "tar.number@sign": file(uid=b"-1") + END,
    "tar.size@negative": file(octets=b"\xff" * 12) + END,
    "tar.owner@minus-one": file(uid=b"\x80\0\0\0\xff\xff\xff\xff") + END,
    "tar.device@major": header(b"3", b"c", major=b"0010000\0") + END,
    "tar.body@pipe-with-a-size": header(b"6", b"p", 5) + F + END,
    "tar.type@volume": header(b"V", b"label") + F + END,
    "tar.name.slash@file": file(b"a/") + END,
    "tar.name.length@4096": pax((b"path", b"n" * 4096)) + F + END,
    "tar.link.length@empty": header(b"2", b"l") + END,
    "tar.gnu.name@empty": extension(b"L", b"\0") + F + END,
    "tar.gnu.padding@no-nul": file(b"././@LongLink", b"long" + b"x" * 508, b"L", octets=b"4\0") + F + END,
    "tar.extension.orphan@pax": pax((b"path", b"p")) + END,
    "tar.extension.order@global-between": pax((b"path", b"p")) + pax((b"comment", b"c"), kind=b"g") + F + END,
    "tar.extension.count@17": extension(b"g", b"") * 17 + F + END,
    "limit.extension@1-mib-and-1": header(b"x", b"x", (1 << 20) + 1),
    "tar.pax.record@length": extension(b"x", b"7 a=b\n") + F + END,
    "tar.pax.nul@path": pax((b"path", b"a\0b")) + F + END,
    "tar.pax.value@size": pax((b"size", b"+4")) + F + END,
    "tar.sparse.gnu@type-s": header(b"S", b"s", magic=b"ustar  \0") + END,
    "tar.sparse.version@2.0": sparse([(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"4")], b"data"),
    "tar.sparse.type@directory": pax(*V1) + header(b"5", b"d") + END,
    "tar.sparse.map@letters": sparse(V1, pad(b"one\n")),
    "tar.sparse.order@overlap": sparse(V1, pad(b"2\n0\n4\n2\n4\n") + b"datadata"),
    "tar.sparse.sum@short": sparse(V1, pad(b"1\n0\n3\n") + b"data"),
    "limit.sparse-regions@65537": sparse(V1, pad(b"65537\n")),
    "xattr.name@256": pax((b"SCHILY.xattr.user." + b"n" * 251, b"")) + F + END,
    "xattr.value@65536": pax((b"SCHILY.xattr.user.a", bytes(65536))) + F + END,
    "limit.xattrs@4-times-61440": pax(*((b"SCHILY.xattr.user.%d" % n, bytes(61440)) for n in range(4))) + F + END,
}


def member(data=b"data", flags=0, method=8, fields=b"", deflate=None, crc=None, size=None):
    """A gzip member around one stored block."""
    number = lambda value, width: value.to_bytes(width, "little")
    stored = b"\x01" + number(len(data), 2) + number(len(data) ^ 0xFFFF, 2) + data
    return (b"\x1f\x8b" + bytes([method, flags]) + bytes(6) + fields + (deflate or stored)
            + number(zlib.crc32(data) if crc is None else crc, 4) + number(len(data) if size is None else size, 4))


HEADER_SUM = (zlib.crc32(member(flags=2)[:10]) & 0xFFFF).to_bytes(2, "little")
GZIP = {
    "ok@member": member(),
    "ok@empty-members": member(b"") * 3 + member() + member(b""),
    "ok@every-field": member(flags=0b11101, fields=b"\x02\0ex" + b"name\0" + b"comment\0"),
    "ok@header-sum": member(flags=2, fields=HEADER_SUM),
    "ok@nul-padding": member() + bytes(700),
    "ok@fixed-block": member(deflate=b"\x4b\x49\x2c\x49\x04\0"),
    "codec.gzip.trailing@letters": member() + b"tail",
    "codec.gzip.trailing@after-padding": member() + bytes(9) + member(),
    "codec.gzip.method@7": member(method=7),
    "codec.gzip.flags@bit-5": member(flags=32),
    "codec.gzip.header-checksum@wrong": member(flags=2, fields=b"\0\0"),
    "codec.gzip.deflate@block-type-3": member(deflate=b"\x07"),
    "codec.gzip.checksum@zero": member(crc=0),
    "codec.gzip.length@one-more": member(size=5),
    "codec.gzip.truncated@empty": b"",
    "codec.gzip.truncated@trailer": member()[:-1],
    "codec.gzip.truncated@second-header": member() + member()[:5],
}

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def frame(descriptor=0x20, fields=b"\x04", data=b"data", kind=0, end=b""):
    """A zstd frame with one last block; as it stands a single segment of 4 bytes."""
    block = (1 | kind << 1 | len(data) << 3).to_bytes(3, "little")
    return ZSTD_MAGIC + bytes([descriptor]) + fields + block + data + end


def skippable(data, number=0):
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


ZSTD = {
    "ok@frame": frame(),
    "ok@frames": skippable(b"skip") + frame() + skippable(b"", 15) + frame(),
    "ok@skippable-only": skippable(bytes(300), 7),
    "ok@window": frame(0, b"\x50"),
    "ok@run": frame(0, b"\0", b"", 1, b"x"),
    # XXH64 of nothing ends in these four bytes.
    "ok@checksum": frame(0x24, b"\0", b"", end=b"\x99\xe9\xd8\x51"),
    "codec.zstd.trailing@letters": frame() + b"tail",
    "codec.zstd.trailing@nul": frame() + bytes(4),
    "codec.zstd.reserved@bit-3": frame(0x28),
    "codec.zstd.dictionary@1": frame(0x21, b"\x01\x04"),
    "codec.zstd.window@largest": frame(0, b"\xff"),
    "codec.zstd.window@single-segment": frame(0xE0, bytes(7) + b"\x01"),
    "codec.zstd.frame@block-type-3": frame(kind=3),
    "codec.zstd.length@empty-block": frame(data=b""),
    "codec.zstd.checksum@zero": frame(0x24, end=bytes(4)),
    "codec.zstd.truncated@empty": b"",
    "codec.zstd.truncated@block": frame()[:-1],
    "codec.zstd.truncated@magic": frame() + ZSTD_MAGIC[:2],
    "codec.zstd.truncated@skippable": skippable(b"skip")[:-1],
}



class Bits:
    """A deflate stream, bit by bit; codes go the other way round than numbers."""

    ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]

    def __init__(self):
        self.bits = []

    def number(self, value, bits):
        self.bits += [value >> bit & 1 for bit in range(bits)]
        return self

    def code(self, value, bits):
        self.bits += [value >> bit & 1 for bit in reversed(range(bits))]
        return self

    def stored(self, data=b"", last=0):
        self.number(last, 3)
        self.number(0, -len(self.bits) % 8)
        self.number(len(data), 16).number(len(data) ^ 0xFFFF, 16)
        for byte in data:
            self.number(byte, 8)
        return self

    def codes(self, literals, distances, last=1):
        """Codes of their own, with lengths that are all written plainly in four bits."""
        literals = [literals.get(symbol, 0) for symbol in range(max(literals) + 1)]
        self.number(last, 1).number(2, 2)
        self.number(len(literals) - 257, 5).number(len(distances) - 1, 5).number(15, 4)
        for symbol in self.ORDER:
            self.number(4 if symbol < 16 else 0, 3)
        for length in literals + distances:
            self.code(length, 4)
        return self

    def bytes(self):
        return bytes(
            sum(bit << at for at, bit in enumerate(self.bits[start : start + 8]))
            for start in range(0, len(self.bits), 8)
        )


def packed(data, level=6):
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def fixed(*codes):
    bits = Bits().number(3, 3)
    for value, length in codes:
        bits.code(value, length)
    return bits.number(0, 40).bytes()


ONE = {97: 1, 256: 2, 257: 2}
LONG = {symbol: symbol - 96 for symbol in range(97, 112)} | {256: 15}
DEFLATE = {
    "empty-blocks": Bits().stored().number(2, 3).code(0, 7).codes({256: 1}, [0], 0).code(0, 1).stored(b"", 1).bytes(),
    "one-distance": Bits().codes(ONE, [1]).code(0, 1).code(3, 2).code(0, 1).code(2, 2).bytes(),
    "one-distance-other-bit": Bits().codes(ONE, [1]).code(0, 1).code(3, 2).code(1, 1).code(2, 2).bytes(),
    "no-distance": Bits().codes(ONE, [0]).code(0, 1).code(3, 2).number(0, 9).bytes(),
    "one-literal-other-bit": Bits().codes({256: 1}, [0]).code(1, 1).number(0, 9).bytes(),
    "over-subscribed": Bits().codes({97: 1, 98: 1, 256: 1}, [0]).number(0, 9).bytes(),
    "under-subscribed": Bits().codes({97: 2, 256: 2}, [0]).number(0, 9).bytes(),
    "over-subscribed-distances": Bits().codes(ONE, [1, 1, 1]).number(0, 9).bytes(),
    "no-end": Bits().codes({97: 1, 98: 1, 256: 0}, [0]).number(0, 9).bytes(),
    "codes-of-15-bits": Bits().codes(LONG, [0]).code(0x7FFE, 15).code(0, 1).code(0x7FFF, 15).bytes(),
    "length-258-by-284": fixed((0x30 + 97, 8), (0xC4, 8), (31, 5), (0, 5), (0, 7)),
    "length-258-by-285": fixed((0x30 + 97, 8), (0xC5, 8), (0, 5), (0, 7)),
    "symbol-286": fixed((0xC6, 8)),
    "distance-30": fixed((0x30 + 97, 8), (1, 7), (30, 5)),
    "distance-past-the-start": fixed((0x30 + 97, 8), (1, 7), (1, 5), (0, 7)),
    "block-type-3": b"\x07",
    "stored-lengths": b"\x01\x01\0\x01\0",
    "too-many-codes": Bits().number(5, 3).number(30, 5).number(0, 40).bytes(),
    "stored-and-packed": Bits().stored(bytes(range(256))).bytes() + packed(bytes(range(256)) * 9 + b"a" * 4000),
    "text": packed(b"".join(b"entry %d of %d; " % (n * n % 97, n) for n in range(900))),
    "runs-fast": packed(b"".join(bytes([n]) * (n * 7 % 300) for n in range(256)), 1),
}


def raw_crc32c(data, crc=0):
    """CRC-32C that starts from a given value and is not inverted."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


WINDOW = 32768
PIECES = [b"first block, ", b"second block, ", b"and the third"]


def blob_of(pieces=PIECES, end=b""):
    """A gzip member of stored blocks, and where each block starts: uncompressed offset, byte."""
    body, starts, plain = b"", [], b""
    for n, piece in enumerate(pieces):
        starts.append((len(plain), 10 + len(body)))
        length = len(piece).to_bytes(2, "little")
        body += bytes([n == len(pieces) - 1]) + length + bytes(255 - byte for byte in length) + piece
        plain += piece
    numbers = zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(7) + body + numbers + end, starts, plain


def indexed(packed=True, header={}, points={}, table=None, windows=None, blob=None, sum=None, end=b""):
    """A blob and its index; fields of the header and of points by name, or the whole table or windows."""
    given, starts, plain = blob_of()
    blob = given if blob is None else blob
    pack = zlib.compress if packed else bytes
    number = lambda value, width: (value % (1 << 8 * width)).to_bytes(width, "little")
    area, entries = b"", []
    for n, (at, byte) in enumerate(starts):
        window = pack((bytes(WINDOW) + plain[:at])[-WINDOW:]) if windows is None else windows
        entry = {"de_pos": at, "en_pos": byte, "win_pos": 333 + len(area), "bits": 0, "win_len": len(window)}
        area += window
        entries.append(entry | points.get(n, {}))
    widths = {"de_pos": 8, "en_pos": 8, "win_pos": 8, "bits": 1, "win_len": 4}
    rows = b"".join(number(entry[name], width) for entry in entries for name, width in widths.items())
    table = pack(rows if table is None else table)
    fields = {"major": (8, 1, 1), "minor": (9, 1, 0), "algo": (10, 1, packed), "level": (11, 1, 6), "span": (13, 4, 1 << 20),
              "window": (17, 4, WINDOW), "index_size": (21, 4, 29), "index_num": (25, 8, len(entries)),
              "gzip_file_size": (33, 8, len(blob)), "index_file_size": (41, 8, 333 + len(area) + len(table) + len(end)),
              "uncompress_file_size": (49, 8, len(plain)), "index_start": (313, 8, 333 + len(area)),
              "index_area_len": (321, 8, len(table) + len(end))}
    record = bytearray(b"ddgzidx\0") + bytes(325)
    for name, (at, width, value) in fields.items():
        record[at : at + width] = number(header.get(name, value), width)
    if "magic" in header:
        record[:8] = header["magic"]
    record[329:] = number(raw_crc32c(record[:329]) if sum is None else sum, 4)
    return number(len(blob), 4) + blob + bytes(record) + area + table + end




def metadata(*members):
    """Headers with the places of their data: the members of an archive, each whole, or with the place that it claims."""
    out, at = b"", 0
    for member in members:
        member, claimed = member if isinstance(member, tuple) else (member, None)
        kind = member[156:157]
        if kind in b"xgLK":
            out += member
        else:
            place = (at + BLOCK if claimed is None else claimed).to_bytes(8, "little")
            head = bytearray(member[:BLOCK])
            if kind in b"\x0007":
                head[329:337] = place
            out += head
        at += len(member)
    return out


TAR_METADATA = {
    "ok@empty": b"",
    "ok@files": metadata(F, file(b"b", bytes(1500)), file(b"c", b""), F),
    "ok@extensions": metadata(extension(b"L", b"n" * 300 + b"\0"), F, pax((b"path", b"p"), (b"size", b"4")), F, pax((b"comment", b"c"), kind=b"g")),
    "ok@other-types": metadata(header(b"5", b"d/"), header(b"3", b"n", major=b"0000007\0"), header(b"1", b"l", link=b"a"), F),
    "ok@wrong-checksum": metadata(file(checksum=b"000000\0 "), F),
    "ok@sparse-in-the-header": metadata(pax(*V0, (b"GNU.sparse.name", b"s"), (b"GNU.sparse.map", b"5000,4")), F, F),
    "an-archive": F + file(b"b", bytes(700)) + END,
    "tar.metadata.place@zero": metadata(F, (F, 0)),
    "tar.metadata.place@a-block-late": metadata((F, 1024)),
    "tar.metadata.place@largest": metadata((F, (1 << 64) - 1)),
    "tar.metadata.place@largest-file": metadata(pax((b"size", b"9223372036854775807")), F, (F, 1 << 63)),
    "tar.metadata.sparse@1.0": metadata(pax(*V1), file(b"s", pad(b"1\n0\n4\n") + b"data")),
    "tar.truncated.header@half": metadata(F)[:300],
    "tar.truncated.extension@no-body": pax((b"path", b"p"))[:BLOCK],
    "tar.magic@unknown": metadata(file(magic=b"ustar 00")),
}

META = file(b"erofs.fs.meta", b"metadata")
TURBO_ARCHIVE = {
    "ok@all": file(b"ext4.fs.meta") + META + file(b".turbo.ociv1", b"") + file(b"gzip.meta", bytes(900)) + END,
    "ok@no-marker": META + END,
    "ok@directory": header(b"5", b"./") + file(b"./erofs.fs.meta") + END,
    "turbo.member@up": META + file(b"../gzip.meta") + END,
    "turbo.member@absolute": META + file(b"/gzip.meta") + END,
    "turbo.member@link": META + header(b"2", b"gzip.meta", link=b"/etc/passwd") + END,
    "turbo.member@hard-link": META + header(b"1", b"gzip.meta", link=b"erofs.fs.meta") + END,
    "turbo.member@device": META + header(b"3", b"gzip.meta") + END,
    "turbo.member@long-name": META + pax((b"path", b"fs/gzip.meta")) + F + END,
    "turbo.member@sparse": META + pax(*V0, (b"GNU.sparse.name", b"gzip.meta"), (b"GNU.sparse.map", b"5000,4")) + F + END,
    "turbo.member@twice": META + META + END,
    "turbo.marker@contents": META + file(b".turbo.ociv1") + END,
    "turbo.empty@index-only": file(b"gzip.meta") + END,
    "turbo.empty@nothing": b"",
    "tar.truncated.data@member": META[: BLOCK + 4],
    "tar.checksum@member": META + file(b"gzip.meta", checksum=b"000000\0 "),
}

GOOD = blob_of()[0]
GZINDEX = {
    "ok@packed": indexed(),
    "ok@stored": indexed(False),
    "ok@padding": indexed(blob=GOOD + bytes(600)),
    "ok@minor-version": indexed(header={"minor": 9}),
    "gzindex.truncated@332": (0).to_bytes(4, "little") + bytes(332),
    "gzindex.magic@capital": indexed(header={"magic": b"DDGZIDX\0"}),
    "gzindex.version@2": indexed(header={"major": 2}),
    "gzindex.checksum@zero": indexed(sum=0),
    "gzindex.field@algorithm": indexed(header={"algo": 2}),
    "gzindex.field@window": indexed(header={"window": 1 << 16}),
    "gzindex.field@length-of-a-point": indexed(header={"index_size": 30}),
    "gzindex.field@negative-size": indexed(header={"uncompress_file_size": -1}),
    "gzindex.file-size@one-more": indexed(header={"index_file_size": 1 << 40}),
    "gzindex.blob-size@one-more": indexed(header={"gzip_file_size": len(GOOD) + 1}),
    "limit.gzindex-points@largest": indexed(header={"index_num": -1}),
    "gzindex.table@in-the-header": indexed(header={"index_start": 332}),
    "gzindex.table@past-the-end": indexed(header={"index_area_len": -1}),
    "gzindex.table-data@bomb": indexed(table=bytes(1 << 20)),
    "gzindex.table-data@short": indexed(header={"index_num": 4}),
    "gzindex.table-data@trailing": indexed(end=b"tail"),
    "gzindex.table-data@stored-too-long": indexed(False, table=bytes(29 * 3 + 1)),
    "gzindex.start@not-0": indexed(points={0: {"de_pos": 1}}),
    "gzindex.start@no-points": indexed(header={"index_num": 0}, table=b""),
    "gzindex.order@back": indexed(points={1: {"de_pos": 30}}),
    "gzindex.order@bytes": indexed(points={1: {"en_pos": 9}}),
    "gzindex.range@bits": indexed(points={1: {"bits": 8}}),
    "gzindex.range@negative": indexed(points={1: {"de_pos": -1}}),
    "gzindex.range@window-in-the-header": indexed(points={1: {"win_pos": 332}}),
    "gzindex.range@window-past-the-table": indexed(points={1: {"win_pos": 1 << 40}}),
    "gzindex.range@window-length": indexed(points={1: {"win_len": 1 << 20}}),
    "gzindex.window@bomb": indexed(windows=zlib.compress(bytes(1 << 20))),
    "gzindex.window@short": indexed(windows=zlib.compress(bytes(WINDOW - 1))),
    "gzindex.members@second": indexed(blob=GOOD + GOOD),
    "gzindex.members@tail": indexed(blob=GOOD + b"tail"),
    "gzindex.data@between-blocks": indexed(points={1: {"en_pos": 11}, 2: {"en_pos": 11}}),
    "gzindex.end@longer": indexed(header={"uncompress_file_size": 41}),
    "gzindex.end@shorter": indexed(header={"uncompress_file_size": 39}),
    "gzindex.cut@trailer": indexed(blob=GOOD[:-1]),
    "gzindex.cut@block": indexed(blob=GOOD[:-12]),
}


ZFILE_MAGIC = b"ZFile\0\1\0tuji.yyf@Alibaba"
CONTENTS = bytes(range(256)) * 21


def lz4_block(data):
    """An LZ4 block of literals alone."""
    length, more = len(data) - 15, b""
    while length >= 255:
        more, length = more + b"\xff", length - 255
    return b"\xf0" + more + bytes([length]) + data if len(data) >= 15 else bytes([len(data) << 4]) + data


def end_of(flags, fields):
    """A header or trailer, with its digest if bit 4 of the flags is set."""
    record = bytearray(ZFILE_MAGIC) + bytes(488)
    layout = {"size": (24, 4), "flags": (32, 8), "index_offset": (40, 8), "index_size": (48, 8), "contents": (56, 8),
              "index_crc": (64, 4), "block_size": (72, 4), "algo": (76, 1), "use_dict": (78, 1), "dict_size": (84, 4),
              "verify": (88, 1)}
    values = {"size": 96, "flags": flags, "block_size": 4096, "algo": 1, "verify": 1} | fields
    for name, value in values.items():
        if name in layout:
            at, width = layout[name]
            record[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    record[:8] = values.get("magic", ZFILE_MAGIC[:8])
    if values["flags"] & 16:
        record[28:32] = raw_crc32c(record).to_bytes(4, "little")
    if "garbage" in values:
        record[28:32] = record[36:40] = record[64:68] = b"\xa5" * 4
        record[96:] = b"\xa5" * 416
    return bytes(record)


def zfile_of(contents=CONTENTS, blocks=None, lengths=None, final=False, both={}, header={}, trailer={}, dictionary=b"",
             gap=b""):
    """A ZFile; compressed blocks, the index, and fields of the header, the trailer or both may be given."""
    number = lambda value: value.to_bytes(4, "little")
    if blocks is None:
        blocks = [lz4_block(contents[at : at + 4096]) for at in range(0, len(contents), 4096)]
    verify = both.get("verify", 1)
    stored = [block + (number(raw_crc32c(block, 100007)) if verify else b"") for block in blocks]
    index = b"".join(number(length) for length in ([len(block) for block in stored] if lengths is None else lengths))
    body = dictionary + b"".join(stored) + gap
    finally_ = {"index_offset": 512 + len(body), "index_size": len(blocks), "contents": len(contents),
                "index_crc": raw_crc32c(index)}
    first = both | (finally_ if final else {})
    return (end_of(0x1B if final else 0x13, first | header) + body + index
            + end_of(0x16, both | finally_ | trailer))


def damaged(data, at, bit=1):
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


ZFILE = {
    "ok@streamed": zfile_of(),
    "ok@final-header": zfile_of(final=True),
    "ok@empty": zfile_of(b""),
    "ok@no-checksums": zfile_of(both={"verify": 0}),
    "ok@old-garbage": zfile_of(header={"flags": 3, "garbage": 1}, trailer={"flags": 6, "garbage": 1}),
    "ok@unused-dictionary": zfile_of(both={"dict_size": 7}, dictionary=b"unused."),
    "ok@block-of-64-KiB": zfile_of(blocks=[lz4_block(CONTENTS)], both={"block_size": 1 << 16}),
    "zfile.truncated@1023": zfile_of()[:1023],
    "zfile.magic@header": damaged(zfile_of(), 3),
    "zfile.magic@trailer": damaged(zfile_of(), -512 + len(zfile_of())),
    "zfile.flags@two-trailers": zfile_of(header={"flags": 0x16}),
    "zfile.flags@two-headers": zfile_of(trailer={"flags": 0x13}),
    "zfile.digest@header": damaged(zfile_of(), 300),
    "zfile.digest@trailer": damaged(zfile_of(), len(zfile_of()) - 300),
    "zfile.index.compressed@bit-5": zfile_of(header={"flags": 0x33}),
    "zfile.dictionary@used": zfile_of(both={"use_dict": 1, "dict_size": 4}, dictionary=b"dict"),
    "zfile.algorithm@0": zfile_of(both={"algo": 0}),
    "zfile.block-size@2-KiB": zfile_of(both={"block_size": 2048}),
    "zfile.block-size@5000": zfile_of(both={"block_size": 5000}),
    "zfile.block-size@largest": zfile_of(both={"block_size": -1}),
    "zfile.differs@blocks": zfile_of(final=True, header={"index_size": 1}),
    "zfile.differs@block-size": zfile_of(header={"block_size": 8192}),
    "zfile.differs@digest": zfile_of(header={"flags": 3}),
    "zfile.blocks@one-more": zfile_of(trailer={"index_size": 3}),
    "zfile.blocks@contents": zfile_of(trailer={"contents": 1 << 40}),
    "limit.zfile-blocks@largest": zfile_of(trailer={"index_size": -1, "contents": -1}),
    "zfile.index.bounds@header": zfile_of(trailer={"index_offset": 0}),
    "zfile.index.bounds@trailer": zfile_of(trailer={"index_offset": len(zfile_of()) - 519}),
    "zfile.index.bounds@largest": zfile_of(trailer={"index_offset": -1}),
    "zfile.index.bounds@terabytes": zfile_of(trailer={"index_size": 1 << 28, "contents": 1 << 40}),
    "zfile.index.checksum@zero": zfile_of(trailer={"index_crc": 0}),
    "zfile.block.length@no-bytes": zfile_of(lengths=[4, 9]),
    "zfile.block.length@largest": zfile_of(lengths=[(1 << 32) - 1, 9]),
    "zfile.blocks.end@gap": zfile_of(gap=bytes(4)),
    "zfile.blocks.end@short": zfile_of(lengths=[5, 5]),
    "zfile.block.checksum@flipped": damaged(zfile_of(), 600),
    "zfile.block.malformed@no-literals": zfile_of(blocks=[b"\xf0", lz4_block(CONTENTS[4096:])]),
    "zfile.block.malformed@offset-0": zfile_of(b"abcd", blocks=[b"\x00\0\0\0"]),
    "zfile.block.malformed@too-much": zfile_of(b"abc", blocks=[lz4_block(b"abcd")]),
    "zfile.block.malformed@no-frame": zfile_of(b"abcd", blocks=[b"abcd"], both={"algo": 2}),
    "zfile.block.contents@short": zfile_of(b"abcde", blocks=[lz4_block(b"abcd")]),
}

ZWRAPPED = zfile_of(b"payload")


def upstream(payload=ZWRAPPED, size=None, name=b"overlaybd.commit", kind=b"0", **fields):
    """The shape of the upstream tool: the size in a PAX record, and 0 in the header."""
    size = len(payload) if size is None else size
    record = (b"size", b"%d" % size)
    return pax(record) + header(kind, name, 0, **fields) + pad(payload) + bytes(1024)


TARWRAP = {
    "ok@upstream": upstream(),
    "ok@one-header": file(b"overlaybd.commit", ZWRAPPED) + bytes(1024),
    "ok@more-zeros": file(b"overlaybd.commit", ZWRAPPED) + bytes(9000),
    "ok@no-payload": upstream(b""),
    "none@gnu-magic": file(b"overlaybd.commit", ZWRAPPED, magic=b"ustar  \0"),
    "none@checksum": file(b"overlaybd.commit", ZWRAPPED, checksum=b"0000000\0"),
    "none@bare": ZWRAPPED,
    "none@short": header(b"0", b"overlaybd.commit", 7)[:511],
    "overlaybd.wrapper.type@directory": header(b"5", b"overlaybd.commit/") + END,
    "overlaybd.wrapper.type@link": header(b"2", b"overlaybd.commit", link=b"/etc/shadow") + END,
    "overlaybd.wrapper.empty@no-entry": pax((b"size", b"7")),
    "overlaybd.wrapper.empty@headers-only": pax((b"comment", bytes(1 << 16))) + file(b"overlaybd.commit", ZWRAPPED),
    "overlaybd.wrapper.truncated@payload": upstream()[: 1536 + len(ZWRAPPED) - 1],
    "overlaybd.wrapper.truncated@size": upstream(size=(1 << 63) - 1),
    "tar.pax.value@size": pax((b"size", b"-7")) + header(b"0", b"overlaybd.commit") + END,
    "tar.extension.orphan@end": pax((b"size", b"7")) + END,
}

CONFIG = {
    "ok@lowers": b'{"lowers":[{"file":"/a"},{"dir":"/b","digest":"sha256:00","size":7}],"resultFile":"/r","x":[{}]}',
    "ok@go": b'{"repoBlobUrl":"","lowers":[{"file":"a"}],"upper":{},"resultFile":null}',
    "ok@turbo": b'{"lowers":[{"file":"/m","targetFile":"/t","gzipIndex":"/i"}],"upper":{"data":"/d","index":"/x","target":"/t"}}',
    "overlaybd.config.json@nothing": b"",
    "overlaybd.config.json@deep": b"[" * 4096,
    "overlaybd.config.json@twice": b'{"lowers":[],"lowers":[]}',
    "overlaybd.config.json@negative": b'{"lowers":[{"file":"/a","size":-1}]}',
    "overlaybd.config.empty@object": b"{}",
    "overlaybd.config.empty@trace": b'{"lowers":[{"dir":"/t"}],"accelerationLayer":true}',
    "overlaybd.config.lowers@256": b'{"lowers":[' + b",".join([b'{"file":"a"}'] * 256) + b"]}",
    "overlaybd.config.path@nul": b'{"lowers":[{"file":"a\\u0000"}]}',
    "overlaybd.config.path@no-index": b'{"upper":{"data":"/d"}}',
    "overlaybd.lower.missing@nowhere": b'{"lowers":[{}]}',
}

# --- LSMT: a byte for the kind, then the files; see src/format/lsmt/fuzz.rs ------------------------------------------

def le(value, width):
    return value.to_bytes(width, "little")


LSMT_MAGIC = b"LSMT\0\1\2\0" + bytes.fromhex("657e63d29444084ca2d2c8ec4fcfae8a")


def lsmt_header(flags, offset=0, entries=0, virtual=1 << 20, uuid=b"0B0B0B0B-1111-4111-8111-000000000001", version=1,
                magic=LSMT_MAGIC):
    record = magic + le(390, 4) + le(flags, 4) + le(offset, 8) + le(entries, 8) + le(virtual, 8)
    record += uuid.ljust(37, b"\0") + b"00000000-0000-0000-0000-000000000000\0" + bytes(2) + bytes([version, 1])
    return record.ljust(4096, b"\0")


def lsmt_entry(start, sectors, at, zeroed=0, tag=0):
    return le(start | sectors << 50, 8) + le(at | zeroed << 55 | tag << 56, 8)


UNUSED = lsmt_entry((1 << 50) - 1, 0, 0)
TWO = lsmt_entry(2, 1, 8) + lsmt_entry(8, 2, 9)


def lsmt(entries=TWO, data=3, header=None, trailer=None, flags=7):
    """A committed file: `header` and `trailer` are values of those records."""
    body = b"".join(bytes([n + 1]) * 512 for n in range(data))
    end = {"flags": 6, "offset": 4096 + len(body), "entries": len(entries) // 16} | (trailer or {})
    return lsmt_header(**({"flags": flags} | (header or {}))) + body + entries + lsmt_header(**end)


def plain(**parts):
    return b"\0" + lsmt(**parts)


def two(kind, first, second):
    return bytes([kind]) + le(len(first), 4) + first + second


def turbo(entries, target=bytes(range(256)) * 8):
    return two(1, lsmt(entries), target)


def lsmt_pair(records=TWO, data=3, header=None, index=None, kind=2, end=b""):
    body = b"".join(bytes([n + 1]) * 512 for n in range(data))
    head = lsmt_header(**({"flags": 3} | (header or {}))) if kind == 2 else b""
    return two(kind, head + body, lsmt_header(**({"flags": 1, "offset": 4096} | (index or {}))) + records + end)


SPARSE = lsmt_header(0x13, virtual=16384)
LSMT = {
    "ok@committed": plain(),
    "ok@padded": plain(entries=TWO + UNUSED * 254),
    "ok@empty": plain(entries=b"", data=0),
    "ok@zeros": plain(entries=lsmt_entry(0, 16383, 8, 1) + lsmt_entry(16383, 1, 11, 1), header={"virtual": 1 << 23},
                      trailer={"virtual": 1 << 23}),
    "ok@sealed": plain(flags=3),
    "ok@sealed-sparse": plain(flags=0x13, trailer={"flags": 0x16}),
    "ok@cut-device": plain(entries=lsmt_entry(0, 3, 8), trailer={"virtual": 1300}),
    "ok@tags-of-merged-layers": plain(entries=lsmt_entry(2, 1, 8, tag=1) + lsmt_entry(8, 2, 9, tag=7)),
    "ok@shared-data": plain(entries=lsmt_entry(0, 3, 8) + lsmt_entry(3, 3, 8)),
    "ok@no-size": plain(trailer={"virtual": 0}),
    "ok@turbo": turbo(lsmt_entry(0, 1, 8) + lsmt_entry(8, 2, 1, tag=1)),
    "ok@turbo-behind-the-target": turbo(lsmt_entry(0, 1, 8) + lsmt_entry(8, 2, 1 << 40, tag=1)),
    "ok@pair": lsmt_pair(TWO + lsmt_entry(8, 1, 9, 1) + UNUSED, end=b"cut off"),
    "ok@turbo-pair": lsmt_pair(lsmt_entry(0, 1, 0, tag=5) + lsmt_entry(8, 1, 1, tag=6), kind=3),
    "ok@sparse": b"\4" + SPARSE + bytes(4096) + b"x" * 4096 + bytes(4096) + b"y" * 4096,
    "lsmt.short@8191": plain()[:8192],
    "lsmt.short@pair-without-index": two(2, lsmt_header(3), b""),
    "lsmt.magic@header": plain(header={"magic": b"lsmt" + LSMT_MAGIC[4:]}),
    "lsmt.magic@trailer": plain(trailer={"magic": LSMT_MAGIC[:-1] + b"x"}),
    "lsmt.magic@cut": plain()[:-1],
    "lsmt.flags@index-file": plain(flags=1),
    "lsmt.flags@two-headers": plain(trailer={"flags": 7}),
    "lsmt.flags@not-sealed": plain(trailer={"flags": 2}),
    "lsmt.flags@sparse-pair": lsmt_pair(header={"flags": 0x13}),
    "lsmt.flags@not-sparse": b"\4" + lsmt_header(3),
    "lsmt.version@2": plain(trailer={"version": 2}),
    "lsmt.index.range@header": plain(trailer={"offset": 4095}),
    "lsmt.index.range@trailer": plain(trailer={"entries": 3}),
    "lsmt.index.range@largest": plain(trailer={"offset": (1 << 64) - 1}),
    "lsmt.index.count@bomb": plain(trailer={"entries": (1 << 64) - 1}),
    "lsmt.index.count@one-more": plain(trailer={"entries": 1_000_001}),
    "lsmt.entry.length@0": plain(entries=lsmt_entry(2, 0, 8)),
    "lsmt.entry.order@overlap": plain(entries=lsmt_entry(2, 2, 8) + lsmt_entry(3, 1, 8)),
    "lsmt.entry.order@descending": plain(entries=lsmt_entry(9, 1, 8) + lsmt_entry(3, 1, 8)),
    "lsmt.entry.device@behind": plain(entries=lsmt_entry(2047, 2, 8)),
    "lsmt.entry.device@far": plain(entries=lsmt_entry((1 << 50) - 2, 1, 8), trailer={"virtual": 0}),
    "lsmt.entry.device@pair": lsmt_pair(lsmt_entry(2048, 1, 8)),
    "lsmt.entry.data@header": plain(entries=lsmt_entry(2, 1, 7)),
    "lsmt.entry.data@index": plain(entries=lsmt_entry(2, 2, 10)),
    "lsmt.entry.data@zeros": plain(entries=lsmt_entry(2, 2, 12, 1)),
    "lsmt.entry.data@pair": lsmt_pair(lsmt_entry(2, 2, 10)),
    "lsmt.entry.target@none": plain(entries=lsmt_entry(2, 1, 900, tag=1)),
    "lsmt.entry.tag@2": turbo(lsmt_entry(2, 1, 8, tag=2)),
    "lsmt.entry.tag@turbo-pair": lsmt_pair(lsmt_entry(0, 1, 0, tag=5) + lsmt_entry(8, 1, 1, tag=7), kind=3),
    "lsmt.pair@identity": lsmt_pair(index={"uuid": b"0B0B0B0B-1111-4111-8111-000000000002"}),
    "lsmt.device.size@one-more": plain(trailer={"virtual": (1 << 44) + 1}),
    "lsmt.device.size@sparse": b"\4" + lsmt_header(0x13, virtual=(1 << 64) - 1),
}

def xz(change=lambda stream: stream):
    return b"\0" + change(bytearray(lzma.compress(b"some text", preset=0)))


def large_dictionary(stream):
    """The property byte of LZMA2 is behind two bytes of flags, the id of the filter and its length."""
    assert stream[14:16] == b"\x21\x01"
    stream[16] = 36  # 1 GiB
    length = 4 * (stream[12] + 1)
    stream[12 + length - 4:12 + length] = struct.pack("<I", zlib.crc32(stream[12:12 + length - 4]))
    return stream


def other_check(stream):
    stream[-24] ^= 1
    return stream


# One stored block in a frame without checksums; 0x82 is the checksum of the header.
LZ4 = b"\x04\x22\x4d\x18\x60\x40\x82" + struct.pack("<I", 1 << 31 | 4) + b"text" + bytes(4)
LEGACY = b"\x02\x21\x4c\x18" + struct.pack("<I", 5) + b"\x40text"
SKIPPED = b"\x55\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
BROTLI = b"\3" + (pathlib.Path(__file__).parent.parent / "fixtures/streams/text.br").read_bytes()
# The first byte selects the coding: xz, lz4, bzip2, brotli.
FOREIGN = {
    "ok@xz": xz(),
    "ok@xz-padding": xz() + bytes(4) + xz()[1:],
    "ok@lz4": b"\1" + SKIPPED + LZ4 + LEGACY + LZ4,
    "ok@bzip2": b"\2" + bz2.compress(b"text") + bz2.compress(b""),
    "ok@brotli": BROTLI,
    "codec.foreign.data@xz-check": xz(other_check),
    "codec.foreign.data@lz4-flags": b"\1" + LZ4[:4] + b"\x62\x40\x82",
    "codec.foreign.data@lz4-block-too-long": b"\1" + LZ4[:7] + struct.pack("<I", 1 << 31 | 70000),
    "codec.foreign.data@bzip2-magic": b"\2BZh1" + bytes(10),
    "codec.foreign.data@brotli-window": b"\3\x11",
    "codec.foreign.truncated@nothing": b"\0",
    "codec.foreign.truncated@lz4-before-the-end-mark": b"\1" + LZ4[:-4],
    "codec.foreign.truncated@lz4-in-a-skippable-frame": b"\1" + SKIPPED[:-1],
    "codec.foreign.truncated@bzip2": b"\2" + bz2.compress(b"text")[:-1],
    "codec.foreign.truncated@brotli": BROTLI[:-1],
    "codec.foreign.trailing@lz4": b"\1" + LZ4 + b"tail",
    "codec.foreign.trailing@brotli": BROTLI + b"\0",
    "codec.foreign.window@xz-1-gib": xz(large_dictionary),
    "codec.foreign.dictionary@lz4": b"\1" + LZ4[:4] + b"\x61\x40" + bytes(5),
}

# --- records of snapshotters -----------------------------------------------------------------

def bolt_sum(data):
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 % 2**64
    return total


def bolt_leaf(number, pairs):
    """A page of keys and values; a value that is a tuple is a bucket."""
    elements, data = b"", b""
    for index, (key, value) in enumerate(pairs):
        is_bucket = isinstance(value, tuple)
        value = value[0] if is_bucket else value
        at = (len(pairs) - index) * 16 + len(data)
        elements += struct.pack("<IIII", is_bucket, at, len(key), len(value))
        data += key + value
    return struct.pack("<QHHI", number, 2, len(pairs), 0) + elements + data


def bolt_bucket(pairs):
    """A bucket within a value."""
    return (struct.pack("<QQ", 0, 0) + bolt_leaf(0, pairs),)


def bolt(root, transactions=(6, 7)):
    """A file of four pages: the metas, the free list, and the page `root`."""
    metas = b""
    for number, transaction in enumerate(transactions):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, 4096, 0, 3, 0, 2, 4, transaction)
        meta += struct.pack("<Q", bolt_sum(meta))
        metas += (struct.pack("<QHHI", number, 4, 0, 0) + meta).ljust(4096, b"\0")
    free = struct.pack("<QHHI", 2, 16, 0, 0).ljust(4096, b"\0")
    return metas + free + root.ljust(4096, b"\0")


BOLT_SNAPSHOT = bolt_bucket([(b"id", b"\x01"), (b"kind", b"\x03")])
BOLT_ROOT = bolt_leaf(3, [(b"v1", bolt_bucket([(b"snapshots", bolt_bucket([(b"default/1/a", BOLT_SNAPSHOT)]))]))])
BOLT = {
    "ok@one": bolt(BOLT_ROOT),
    "bolt.meta@zeros": bytes(8192),
    "bolt.page@circle": bolt(struct.pack("<QHHI", 3, 1, 1, 0) + struct.pack("<IIQ", 16, 0, 3)),
    "bolt.page@outside": bolt(struct.pack("<QHHI", 3, 2, 1, 0) + struct.pack("<IIII", 0, 4090, 4096, 0)),
    "bolt.page@overlap": bolt(struct.pack("<QHHI", 3, 2, 1, 0) + struct.pack("<IIII", 1, 0, 4, 0)),
}

SUM = "sha256:" + hashlib.sha256(b"data").hexdigest()


def entry(kind="fifo", name="a", **members):
    return {"name": name, "type": kind} | members


def data_at(offset=0, inner=512, size=4, digest=SUM, **members):
    return entry("reg", size=size, offset=offset, innerOffset=inner, chunkDigest=digest, **members)


def toc(*entries, **members):
    return json.dumps({"version": 1, "entries": entries} | members).encode()


def indexed_layer(*entries, tables=toc, place=None, footer=None, name=b"stargz.index.json"):
    """An archive with one file in one member, and the table in another."""
    payload = gzip.compress(file(), mtime=0)
    table = gzip.compress(file(name, tables(*entries)) + bytes(2 * BLOCK), mtime=0)
    offset = len(payload) if place is None else place
    end = footer or b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x1a\0SG\x16\0%016xSTARGZ\1\0\0\xff\xff" % offset + bytes(8)
    return payload + table + end


def chunked_layer(*entries, kind=1, magic=b"GnUlInUx", length=None, claimed=None):
    """The same in frames of zstd."""
    payload = frame(0xA0, struct.pack("<I", 1024), file())
    table = toc(*entries)
    packed = frame(0xA0, struct.pack("<I", len(table)), table)
    size = len(table) if claimed is None else claimed
    fields = struct.pack("<QQQQ", len(payload) + 8, len(packed) if length is None else length, size, kind)
    return payload + skippable(packed) + skippable(fields + magic)


def crc64(data):
    """CRC-64 of ISO 3309."""
    value = 2**64 - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xD8 << 56 if value & 1 else 0)
    return (value ^ 2**64 - 1).to_bytes(8, "big")


def containers_layer(uid=0, split=lambda lines: lines, digest=None, length=None):
    """One file in frames of zstd, and tar-split data: the form of the containers tools."""
    archive = file() + bytes(2 * BLOCK)
    header, data, rest = archive[:512], archive[512:516], archive[516:]
    frames = [frame(0xA0, struct.pack("<I", len(part)), part) for part in (header, data, rest)]
    payload = b"".join(frames)
    line = lambda position, kind, payload, **members: {"type": kind, **members, "payload": base64.b64encode(payload).decode(), "position": position}
    lines = [line(0, 2, header), line(1, 1, crc64(data), name="a", size=4), line(2, 2, rest)]
    text = "".join(json.dumps(line) + "\n" for line in split(lines)).encode()
    packed = frame(0xA0, struct.pack("<I", len(text)), text)
    start = len(frames[0])
    reg = entry("reg", size=4, mode=0o644, uid=uid, digest="sha256:" + hashlib.sha256(data).hexdigest(),
                offset=start, endOffset=start + len(frames[1]))
    table = toc(reg, tarSplitDigest=digest or "sha256:" + hashlib.sha256(packed).hexdigest())
    packed_table = frame(0xA0, struct.pack("<I", len(table)), table)
    place = len(payload) + 8
    split_place = place + len(packed_table) + 8
    fields = struct.pack("<7Q", place, len(packed_table), len(table), 1,
                         split_place, len(packed) if length is None else length, len(text))
    return payload + skippable(packed_table) + skippable(packed) + skippable(fields + b"GNUlInUx")


def without_last(lines):
    return lines[:-1]


def other_sum(lines):
    return [line | {"payload": "AAAAAAAAAAA="} if line["type"] == 1 else line for line in lines]


STARGZ = {
    "ok@every-type": toc(entry("dir", "d/", mode=0o755), entry("reg", "d/empty", size=0), data_at(), entry("fifo", "p"),
                         entry("char", "c", devMajor=1, devMinor=70000), entry("block", "b", devMajor=7),
                         entry("symlink", "s", linkName="x", modtime="2023-07-22T06:26:40.75+02:00"),
                         entry("hardlink", "h", linkName="a", NumLink=2), entry(name="x", xattrs={"user.a": "gAB/"}),
                         tarSplitDigest=SUM),
    "ok@chunks-out-of-order": toc(data_at(size=8, chunkSize=4),
                                  entry("chunk", offset=9, chunkOffset=4, chunkDigest=SUM)),
    "ok@layer": indexed_layer(data_at()),
    "ok@zstd": chunked_layer(data_at()),
    "ok@containers": containers_layer(),
    "ok@external": indexed_layer(footer=b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x15\0SG\x11\0STARGZEXTERNALTOC\1\0\0\xff\xff" + bytes(8)),
    "none@no-footer": indexed_layer(data_at())[:-1],
    "none@capital-offset": indexed_layer(footer=b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x1a\0SG\x16\0" + b"0" * 15 + b"ASTARGZ\1\0\0\xff\xff" + bytes(8)),
    "none@zstd-other-table": chunked_layer(data_at(), kind=2),
    "stargz.toc.place@zero": indexed_layer(data_at(), place=0),
    "stargz.toc.place@behind": indexed_layer(data_at(), place=1 << 63),
    "stargz.toc.place@inside": indexed_layer(data_at(), place=5),
    "stargz.toc.place@other-entry": indexed_layer(data_at(), name=b"stargz.index"),
    "stargz.toc.place@zstd-length": chunked_layer(data_at(), length=5),
    "limit.stargz.toc@zstd-length": chunked_layer(data_at(), length=1 << 62),
    "limit.stargz.toc@zstd-claim": chunked_layer(data_at(), claimed=3),
    "stargz.toc.json@cut": toc(entry())[:-1],
    "stargz.toc.json@twice": b'{"version":1,"entries":[],"entries":[]}',
    "stargz.toc.json@number": toc(entry(size=1.5)),
    "stargz.toc.version@none": b'{"entries":[{"name":"a","type":"fifo"}]}',
    "stargz.toc.version@2": toc(entry(), version=2),
    "stargz.toc.empty@": toc(),
    "stargz.entry.type@socket": toc(entry("socket")),
    "stargz.entry.name@256": toc(entry(name="a" * 256)),
    "stargz.entry.name@nul": toc(entry(name="a\0")),
    "stargz.entry.name@root": toc(entry(name="./")),
    "stargz.entry.number@negative": toc(entry(uid=-1)),
    "stargz.entry.number@device": toc(entry("char", devMajor=4096)),
    "stargz.entry.time@leap": toc(entry(modtime="2016-12-31T23:59:60Z")),
    "stargz.entry.link@dangling": toc(entry("hardlink", linkName="b")),
    "stargz.entry.link@loop": toc(entry("hardlink", linkName="b"), entry("hardlink", "b", linkName="a")),
    "stargz.entry.link@directory": toc(entry("dir", "d"), entry("hardlink", linkName="d")),
    "stargz.entry.link@empty": toc(entry("symlink")),
    "stargz.entry.xattr@base64": toc(entry(xattrs={"user.a": "?"})),
    "stargz.entry.xattr@namespace": toc(entry(xattrs={"btrfs.a": ""})),
    "stargz.entry.digest@none": toc(entry("reg", size=4)),
    "stargz.entry.digest@md5": toc(data_at(digest="md5:00")),
    "stargz.entry.chunks@stray": toc(entry("chunk", chunkDigest=SUM)),
    "stargz.entry.chunks@hole": toc(data_at(size=9, chunkSize=4), entry("chunk", chunkOffset=5, chunkDigest=SUM)),
    "stargz.entry.chunks@twice": toc(data_at(), entry("chunk", chunkSize=4, chunkDigest=SUM)),
    "stargz.entry.chunks@huge": toc(data_at(chunkSize=(1 << 63) - 1, chunkOffset=1)),
    "stargz.entry.offset@behind": toc(data_at(offset=1 << 20)),
    "stargz.entry.parent@file": toc(entry(), entry(name="a/b")),
    "stargz.chunk.digest@other": indexed_layer(data_at(inner=511)),
    "stargz.chunk.place@short": indexed_layer(data_at(inner=5000)),
    "stargz.chunk.place@overlap": indexed_layer(data_at(), entry("reg", "b", size=5, offset=0, innerOffset=514, digest=SUM)),
    "stargz.chunk.data@no-member": indexed_layer(data_at(offset=1)),
    "limit.stargz.tar-split@length": containers_layer(length=1 << 62),
    "stargz.tar-split.digest@other": containers_layer(digest=SUM),
    "stargz.tar-split.line@missing": containers_layer(split=without_last),
    "stargz.tar-split.line@sum": containers_layer(split=other_sum),
    "stargz.tar-split.entry@owner": containers_layer(uid=1),
}

def ztoc(points=((10, 0, 0),), blob=1000, algorithm=None, spans=None, have=None, short=0, info=True, lists=True, window=WINDOW):
    """An index of SOCI: a flatbuffer whose tables come one after the other, each behind the list of its fields."""
    have = len(points) if have is None else have
    body = struct.pack("<iq", have, 4096)
    for at, out, bits in points:
        body += struct.pack("<qqB", at, out, bits) + bytes(window)
    body = body[: len(body) - short]
    # Before each table the offsets of its fields in it, 0 for those that it lacks; its first number leads back to them.
    root_fields = struct.pack("<8H", 16, 16, 0, 0, 4, 0, 0, 12 if info else 0)
    info_fields = struct.pack("<6H", 12, 16, 4 if algorithm is not None else 0, 8, 0, 12 if lists else 0)
    root = struct.pack("<iqI", len(root_fields), blob, 4 + len(info_fields))
    inner = struct.pack("<ibxxxiI", len(info_fields), algorithm or 0, len(points) - 1 if spans is None else spans, 4)
    return struct.pack("<I", 4 + len(root_fields)) + root_fields + root + info_fields + inner + struct.pack("<I", len(body)) + body


ZTOC = {
    "ok@three": ztoc(points=((10, 0, 0), (600, 40_000, 3), (900, 80_000, 0))),
    "ok@older": ztoc(points=((600, 40_000, 3),), have=2, spans=1),
    "ok@uncompressed": ztoc((), algorithm=2, lists=False),
    "ok@gzip-by-number": ztoc(algorithm=1),
    "ztoc.bounds@empty": b"",
    "ztoc.bounds@root": struct.pack("<I", 0xFFFF_FFFF) + bytes(60),
    "ztoc.bounds@list-before-the-file": struct.pack("<Ii", 4, 0x7FFF_FFFF) + bytes(60),
    "ztoc.bounds@list-behind-the-file": struct.pack("<Ii", 4, -0x8000_0000) + bytes(60),
    "ztoc.bounds@field": struct.pack("<I8H", 20, 16, 20, 0, 0, 0xFFFF, 0, 0, 12) + struct.pack("<iqII", 16, 1, 0, 0),
    "ztoc.bounds@checkpoints": ztoc()[:-1],
    "ztoc.bounds@table-in-itself": struct.pack("<I8H", 20, 16, 20, 0, 0, 4, 0, 0, 12) + struct.pack("<iqII", 16, 1, 0xFFFF_FFFF, 0),
    "ztoc.missing@everything": struct.pack("<IHHi", 8, 4, 4, 4),
    "ztoc.missing@compression": ztoc((), info=False),
    "ztoc.missing@checkpoints": ztoc((), lists=False),
    "ztoc.size@negative": ztoc((), blob=-1),
    "ztoc.compression@0": ztoc((), algorithm=0),
    "ztoc.compression@negative": ztoc((), algorithm=-1),
    "ztoc.checkpoints@short": ztoc(short=1),
    "ztoc.checkpoints@no-header": ztoc(points=(), have=0, spans=-1, short=1),
    "ztoc.checkpoints@two-less": ztoc((), have=2, spans=1),
    "ztoc.checkpoints@negative": ztoc((), have=-1),
    "ztoc.checkpoints@other-window": ztoc(window=WINDOW - 1),
    "limit.ztoc@largest": ztoc((), have=0x7FFF_FFFF),
    "ztoc.spans@more": ztoc((), spans=3),
    "ztoc.spans@largest": ztoc((), spans=0x7FFF_FFFF),
    "ztoc.range@bits": ztoc(points=((10, 0, 8),)),
    "ztoc.range@behind-the-blob": ztoc(points=((1001, 0, 0),)),
    "ztoc.range@negative": ztoc(points=((600, -1, 0),)),
    "ztoc.range@before-the-blob": ztoc(points=((0, 0, 0),)),
    "ztoc.range@beyond-bits": ztoc(points=((1 << 61, 0, 0),), blob=(1 << 63) - 1),
    "ztoc.order@blob": ztoc(points=((600, 0, 0), (600, 40_000, 0))),
    "ztoc.order@stream": ztoc(points=((600, 40_000, 0), (900, 40_000, 0))),
}
for target, inputs in {"ztoc": ZTOC, "bolt": BOLT, "stargz": STARGZ, "foreign": FOREIGN, "lsmt": LSMT, "zfile": ZFILE, "tarwrap": TARWRAP, "overlaybd_config": CONFIG, "gzindex": GZINDEX, "tar_metadata": TAR_METADATA, "turbo_archive": TURBO_ARCHIVE, "tar_parser": TAR, "gzip": GZIP, "zstd": ZSTD, "deflate": DEFLATE}.items():
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*@*"):
        old.unlink()
    for name, data in inputs.items():
        (directory / name).write_bytes(data)
