"""`criserver config`: print the documented default, what is in effect, or what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from criserver import config_text
from criserver.config import Config, ConfigError, add_flags, read_flags

MISTAKE = 1  # exit code


def main(args: Sequence[str]) -> int:
    """Run `criserver config default|dump|check`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="criserver config",
        description="Show or check the configuration. It comes from the defaults, the configuration"
        " file, the *.toml in config.d beside it by name, and the flags; the last one counts.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("default", help="print a file with every setting, documented")
    dump = commands.add_parser("dump", help="print the values in effect and where each is from")
    check = commands.add_parser("check", help="exit 0 if it can be used, else say what is wrong: 1")
    for command in (dump, check):
        add_flags(command)
    options = parser.parse_args(args)
    if options.command == "default":
        sys.stdout.write(config_text.default_toml(Config))
        return 0
    try:
        loaded = read_flags(options)
    except ConfigError as err:
        sys.stderr.write(f"criserver: {err}\n")
        return MISTAKE
    if options.command == "dump":
        sys.stdout.write(config_text.dump_toml(loaded.config, loaded.given))
    else:
        read = ", ".join(map(str, loaded.files)) or "the defaults, as there is no file"
        sys.stdout.write(f"the configuration is good: {read}\n")
    return 0
