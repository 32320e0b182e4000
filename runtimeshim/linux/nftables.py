"""nftables in-process, through libnftables: no program is started for a rule or a set element.

Commands are the text that nft(8) reads, or the JSON of libnftables-json(5); what they list comes as
the latter. One buffer is one transaction: it takes effect as a whole or not at all.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

_LIBRARY = "libnftables.so.1"

# nftables/libnftables.h
_NFT_CTX_DEFAULT = 0
_NFT_CTX_OUTPUT_JSON = 1 << 4
_NFT_CTX_OUTPUT_HANDLE = 1 << 3

Listed = dict[str, Any]


class NftablesError(Exception):
    """libnftables refused a command or is not installed; the message is its own text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # libnftables reports the kernel's errno only as the text of strerror(3).
        self.exists = "File exists" in message
        self.missing = "No such file or directory" in message


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as err:
        raise NftablesError(f"{err}; install nftables (Debian: libnftables1)") from err
    context = ctypes.c_void_p
    library.nft_ctx_new.restype = context
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.restype = None
    library.nft_ctx_free.argtypes = [context]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_ctx_output_set_flags.argtypes = [context, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    for name in ("output", "error"):
        getattr(library, f"nft_ctx_buffer_{name}").argtypes = [context]
        getter = getattr(library, f"nft_ctx_get_{name}_buffer")
        getter.argtypes, getter.restype = [context], ctypes.c_char_p
    return library


class Nftables:
    """One libnftables context; it acts in the network namespace of the calling thread.

    A context serves one thread at a time. Its netlink socket is opened per command by the library.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._context = self._library.nft_ctx_new(_NFT_CTX_DEFAULT)
        if not self._context:
            raise NftablesError("nft_ctx_new failed: out of memory")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        # With JSON output the library reads JSON first, and text where it is none.
        self._library.nft_ctx_output_set_flags(
            self._context, _NFT_CTX_OUTPUT_JSON | _NFT_CTX_OUTPUT_HANDLE
        )

    def run(self, text: str) -> list[Listed]:
        """Run one buffer of commands; returns the objects that it listed, if any."""
        failed = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        # Both getters also empty their buffers, so both are read each time.
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        error = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftablesError(" ".join(error.decode(errors="replace").split()))
        return list(json.loads(output)["nftables"]) if output.strip() else []

    def close(self) -> None:
        """Free the context; it cannot be used afterwards."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None
