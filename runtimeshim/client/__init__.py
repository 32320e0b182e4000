"""The daemon's side of spawner and shims: asyncio, one connection each.

Nothing here forks: the spawner is started by posix_spawn, everything else is asked of it.
"""

from runtimeshim.client.connection import receive_one
from runtimeshim.client.model import (
    CreateError,
    OCIRuntime,
    ProgramResult,
    ProgramTimeoutError,
    Rootfs,
    ShimError,
    ShimOptions,
    SpawnerError,
    StartError,
    WorkerError,
)
from runtimeshim.client.pipes import read_to_end
from runtimeshim.client.shim import Exec, Shim, connect_shim
from runtimeshim.client.spawner import Spawner
from runtimeshim.exit_record import ExitRecord

__all__ = [
    "CreateError",
    "Exec",
    "ExitRecord",
    "OCIRuntime",
    "ProgramResult",
    "ProgramTimeoutError",
    "Rootfs",
    "Shim",
    "ShimError",
    "ShimOptions",
    "Spawner",
    "SpawnerError",
    "StartError",
    "WorkerError",
    "connect_shim",
    "read_to_end",
    "receive_one",
]
