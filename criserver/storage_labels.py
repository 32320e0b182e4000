"""SELinux's label of what lies on disk below a container's root.

The mounted root shows all files with the container's own label, by a mount option. But a program's
mprotect(2) of a file that it has mapped, as the dynamic loader does it, is judged by the label of
the layer's file. So layers have the type that container-selinux gives to those of other runtimes,
which any container may read. New files get it from their directory.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from runtimeshim.linux import selinux

logger = logging.getLogger(__name__)

LABEL = "system_u:object_r:container_ro_file_t:s0"
DIRECTORIES = ("layers", "containers")


async def apply(root: Path) -> None:
    """Label the two directories and what is below, where it is not done; logs what fails.

    The first start with SELinux walks all layers; later ones look at the directories alone.
    """
    for name in DIRECTORIES:
        directory = root / name
        try:
            await asyncio.to_thread(selinux.relabel, str(directory), LABEL)
        except OSError as err:
            logger.warning(
                "%s cannot have the SELinux label %s: %s; containers may be refused their programs:"
                " is container-selinux installed?", directory, LABEL, err
            )  # fmt: skip
