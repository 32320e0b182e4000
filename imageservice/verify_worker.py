"""Worker of the spawner: compare one unpacked layer with its blob.

Runs like imageservice.unpack_worker: in a fork of the spawner, chrooted into the layer, without the
capabilities that it does not need.
"""

from __future__ import annotations

import os
from typing import Any

from imageservice.compression import CompressionError, decompressed
from imageservice.layer_check import LayerCheck
from imageservice.layer_stream import LayerStream
from imageservice.tar import TarError
from imageservice.tar_reader import TarReader
from imageservice.unpack_worker import MAX_LAYER_BYTES, READ_SIZE, confine

Answer = tuple[dict[str, Any], list[int]]


def main(args: dict[str, Any], fds: list[int]) -> Answer:
    """Compare the directory fds[1] with the layer blob fds[0], whose digest the caller has checked.

    Answers diff_id, and findings: what is damaged, a line each.
    """
    source, target = fds
    stream = LayerStream(decompressed(lambda: os.read(source, READ_SIZE)), MAX_LAYER_BYTES)
    confine(target)
    check = LayerCheck()
    try:
        reader = TarReader(stream)
        for entry in reader:
            check.compare(entry, reader)
        stream.drain()
        findings = check.findings()
    except (TarError, CompressionError, OSError) as err:
        findings = [str(err)]
    return {"diff_id": stream.digest(), "findings": findings}, []
