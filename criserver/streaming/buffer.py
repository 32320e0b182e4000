"""The type of bytes that are on their way; the protocol cores share it with what does I/O."""

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
