"""What the README says is there is there, and nothing that it does not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from api.cri import api_pb2
from criserver import cli
from criserver.handlers import FUNCTIONS, STREAMS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# Their handlers only say why they do nothing.
REFUSED = {"CheckpointContainer", "CheckpointPod", "RestorePod"}
METHODS = [m.name for s in api_pb2.DESCRIPTOR.services_by_name.values() for m in s.methods]


def test_the_rpcs_that_are_not_implemented_are_named() -> None:
    named = README.split("Every RPC of the CRI is implemented but ", 1)[1].split(":", 1)[0]
    refused = REFUSED | {m for m in METHODS if m not in FUNCTIONS | STREAMS}
    assert set(re.findall(r"\b[A-Z][a-z]\w+", named)) == refused


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bhack/[\w-]+", README))))
def test_programs_exist_and_can_be_executed(path: str) -> None:
    assert (ROOT / path).stat().st_mode & 0o111


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"criserver ([a-z][a-z-]*)\b", README))))
def test_verbs_exist(verb: str) -> None:
    prose = {"serve", "run", "is"}
    assert verb in cli.VERBS or verb in prose


def test_the_project_describes_itself_by_the_readme() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"] == "README.md"
