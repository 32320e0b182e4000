"""SPDY/3 header blocks: lists of names and values, compressed over the whole connection.

Source: SPDY protocol draft 3.1, section 2.6.10 (name/value header block). Both directions have one
zlib stream each, primed with the protocol's dictionary, and every block ends with a sync flush. A
block that cannot be decompressed therefore makes all that follow unreadable.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

# Bounds what one frame can make us hold: a client's headers are some 60 bytes.
MAX_BLOCK = 16 * 1024

_LENGTH = struct.Struct(">I")

# Section 2.6.10.1. Words, each with its length in four bytes before it, and then plain text.
_WORDS = (
    "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,"
    "accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,"
    "content-language,content-length,content-location,content-md5,content-range,content-type,date,"
    "etag,expect,expires,from,host,if-match,if-modified-since,if-none-match,if-range,"
    "if-unmodified-since,last-modified,location,max-forwards,pragma,proxy-authenticate,"
    "proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,"
    "user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,"
    "public,set-cookie,keep-alive,origin"
)
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, "
    "Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(_LENGTH.pack(len(w)) + w.encode() for w in _WORDS.split(",")) + _TEXT.encode()


class BrokenBlockError(Exception):
    """The compressed stream is broken or grows too large: nothing after it can be read."""


class MalformedHeadersError(Exception):
    """One block says nothing sensible; the blocks after it can still be read."""


class HeaderDecoder:
    """Reads the blocks of one direction of a connection, in their order."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def decode(self, block: bytes) -> dict[str, str]:
        """Return the headers of one block by their lower-case names.

        A header with several values has them joined by NULs, as on the wire.
        Raises BrokenBlockError or MalformedHeadersError.
        """
        try:
            plain = self._zlib.decompress(block, MAX_BLOCK)
        except zlib.error as err:
            raise BrokenBlockError(f"the header block cannot be decompressed: {err}") from err
        if self._zlib.unconsumed_tail:
            raise BrokenBlockError(f"the header block has more than {MAX_BLOCK} bytes")
        if self._zlib.eof:
            raise BrokenBlockError("the header block ends the compressed stream")
        return _parse(plain)


class HeaderEncoder:
    """Writes the blocks of one direction of a connection."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zdict=DICTIONARY)

    def encode(self, headers: Mapping[str, str]) -> bytes:
        """Return the next block; names are lower-case."""
        parts = [_LENGTH.pack(len(headers))]
        for text in (item for pair in headers.items() for item in pair):
            data = text.encode()
            parts += [_LENGTH.pack(len(data)), data]
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


def _parse(plain: bytes) -> dict[str, str]:
    try:
        (count,) = _LENGTH.unpack_from(plain)
        position = _LENGTH.size
        texts = []
        for _ in range(2 * min(count, MAX_BLOCK)):
            (length,) = _LENGTH.unpack_from(plain, position)
            position += _LENGTH.size + length
            texts.append(plain[position - length : position].decode())
    except (struct.error, UnicodeDecodeError) as err:
        raise MalformedHeadersError(f"the header block is malformed: {err}") from err
    if position != len(plain):
        raise MalformedHeadersError("the lengths in the header block do not add up")
    headers = dict(zip(texts[::2], texts[1::2], strict=True))
    if len(headers) != count:
        raise MalformedHeadersError("a header comes twice, or their number is wrong")
    if any(name != name.lower() or not name for name in headers):
        raise MalformedHeadersError("a header's name is empty or not in lower case")
    return headers
