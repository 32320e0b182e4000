"""Print a script that completes criserver's commands, flags and names in a shell.

examples:
  criserver completion bash > /etc/bash_completion.d/criserver
  criserver completion zsh > /usr/local/share/zsh/site-functions/_criserver
  criserver completion fish > /etc/fish/completions/criserver.fish
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from api.cri import api_pb2 as cri
from criserver import cli
from criserver.cli.client import Client
from criserver.cli.errors import CommandError

# The shells' own variables hold the line up to the cursor; each asks us what may come there.
SCRIPTS = {
    "bash": """\
_criserver() {
    local IFS=$'\\n'
    COMPREPLY=($(criserver completion --line "${COMP_LINE:0:COMP_POINT}" bash 2>/dev/null))
}
complete -o default -F _criserver criserver
""",
    "zsh": """\
#compdef criserver
_criserver() {
    local -a found
    found=("${(@f)$(criserver completion --line "$LBUFFER" zsh 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
compdef _criserver criserver
""",
    "fish": """\
complete -c criserver -a '(criserver completion --line (commandline -cp | string collect) fish \\
    2>/dev/null)'
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--line", metavar="LINE", help="print what may come at the end of LINE")
    parser.add_argument("shell", choices=sorted(SCRIPTS), metavar="SHELL", help="bash, zsh or fish")


def run(options: argparse.Namespace) -> int:
    """Print the script, or the words that the script asks for."""
    if options.line is None:
        sys.stdout.write(SCRIPTS[options.shell])
        return 0
    *words, current = options.line.split(" ")
    found = [
        word
        for word in candidates([word for word in words[1:] if word], options.endpoint, current)
        if word.startswith(current)
    ]
    # bash takes ":" for the end of a word (COMP_WORDBREAKS), and wants what comes after it.
    known = current.rfind(":") + 1 if options.shell == "bash" else 0
    sys.stdout.writelines(f"{word[known:]}\n" for word in found)
    return 0


def candidates(words: list[str], endpoint: str, current: str) -> Iterable[str]:
    """Return all that may follow `words`, of which the first is the verb."""
    while words and words[0].startswith("-"):  # options before the verb, of which one has a value
        if words[0] == "--endpoint" and len(words) > 1:
            endpoint = words.pop(1)
        words = words[1:]
    if not words:
        return ["--endpoint", "--help", "--version"] if current.startswith("-") else cli.VERBS
    verb = words[0]
    if verb not in cli.VERBS or verb in cli.PROGRAMS:
        return []
    parser = cli.verb_parser(verb)
    for word in words[1:]:
        parser = parser.actions.get(word, parser)
    if current.startswith("-"):
        return sorted(parser.flags)
    if parser.actions:
        return sorted(parser.actions)
    kinds = {kind for metavar in parser.metavars for kind in metavar.split("|")}
    try:
        with Client(endpoint) as client:
            return sorted({name for kind in kinds if kind in NAMES for name in NAMES[kind](client)})
    except CommandError:  # no daemon is no reason to write into somebody's command line
        return []


def _containers(client: Client) -> list[str]:
    with client.doing("list containers"):
        listed = client.runtime.ListContainers(cri.ListContainersRequest()).containers
    return [container.metadata.name for container in listed]


def _pods(client: Client) -> list[str]:
    with client.doing("list pods"):
        listed = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    return [pod.metadata.name for pod in listed]


def _images(client: Client) -> list[str]:
    with client.doing("list images"):
        listed = client.images.ListImages(cri.ListImagesRequest()).images
    return [name for image in listed for name in image.repo_tags]


# What a positional argument's name in the help says that it is.
NAMES: dict[str, Callable[[Client], list[str]]] = {
    "CONTAINER": _containers,
    "POD": _pods,
    "IMAGE": _images,
}
