"""The checked-in modules are what hack/generate-stubs writes from the .proto files."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted(path.relative_to(ROOT) for path in ROOT.glob("api/**/*.proto"))
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("stubs")
    subprocess.run(
        [sys.executable, ROOT / "hack/generate-stubs", "--output", output], check=True, timeout=120
    )
    return output


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("proto", PROTOS, ids=str)
def test_the_checked_in_module_is_the_regenerated_one(
    proto: Path, suffix: str, regenerated: Path
) -> None:
    module = proto.with_name(proto.stem + suffix)
    assert (ROOT / module).read_bytes() == (regenerated / module).read_bytes(), (
        f"{module} is not what {proto} generates: run hack/generate-stubs"
    )


def test_nothing_is_checked_in_that_no_proto_generates(regenerated: Path) -> None:
    assert {path.relative_to(ROOT) for path in ROOT.glob("api/**/*_pb2*.py*")} - compiled() == {
        path.relative_to(regenerated) for path in regenerated.glob("api/**/*_pb2*.py*")
    }


def compiled() -> set[Path]:
    return {path.relative_to(ROOT) for path in ROOT.glob("api/**/__pycache__/*")}


@pytest.mark.parametrize("proto", PROTOS, ids=str)
@pytest.mark.parametrize("suffix", ["_pb2", "_pb2_grpc"])
def test_a_generated_module_imports_with_the_installed_protobuf_and_grpc(
    proto: Path, suffix: str
) -> None:
    importlib.import_module(".".join((*proto.parent.parts, proto.stem + suffix)))


def test_the_floors_in_pyproject_are_those_of_the_generated_code() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for proto in PROTOS:
        generated = (ROOT / proto).with_name(f"{proto.stem}_pb2.py").read_text(encoding="utf-8")
        protobuf = generated.partition("Protobuf Python Version: ")[2].split()[0]
        grpc = (ROOT / proto).with_name(f"{proto.stem}_pb2_grpc.py").read_text(encoding="utf-8")
        grpcio = grpc.partition("GRPC_GENERATED_VERSION = '")[2].partition("'")[0]
        assert f'"protobuf>={protobuf},' in pyproject
        assert f'"grpcio>={grpcio},' in pyproject
