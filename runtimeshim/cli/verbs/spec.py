"""spec: a config.json to begin with."""

from __future__ import annotations

import json
import os

from runtimeshim.cli.command import OCI_VERSION, Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.oci import default_spec

FLAGS = (Flag("bundle b", "path", "where to write it (default: the current directory)"),)
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Write the file; one that is there stays."""
    exactly(arguments)
    path = os.path.join(options.text("bundle", "."), "config.json")
    with open(path, "x", encoding="utf-8") as out:
        json.dump(default_spec.default_spec(OCI_VERSION), out, indent=1)
        out.write("\n")
    return 0
