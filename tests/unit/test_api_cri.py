"""api/cri/api.proto is the CRI of cri-api 1.37 on the wire: nothing missing, nothing more.

The table in data/cri-api-1.37.json lists the interface's names, numbers and types. What the loaded
modules hold is written in the same notation, so that a difference reads as a line of the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from api.cri import api_pb2, api_pb2_grpc

TABLE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data/cri-api-1.37.json").read_text(encoding="utf-8")
)
Field = descriptor_pb2.FieldDescriptorProto


def loaded_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    api_pb2.DESCRIPTOR.CopyToProto(file)
    return file


FILE = loaded_file()
MESSAGES = {message.name: message for message in FILE.message_type}


def type_name(field: Field) -> str:
    """A scalar's keyword, or the last part of a message's or enum's name."""
    if field.type_name:
        return field.type_name.rpartition(".")[2]
    return Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def field_line(message: descriptor_pb2.DescriptorProto, field: Field) -> str:
    """A field as the table writes it: `repeated string args = 4 [deprecated]`."""
    entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    kind = type_name(field)
    if kind in entries and field.type_name == f".{FILE.package}.{message.name}.{kind}":
        key, value = entries[kind].field
        kind = f"map<{type_name(key)}, {type_name(value)}>"
    elif field.label == Field.LABEL_REPEATED:
        kind = f"repeated {kind}"
    elif field.proto3_optional or field.label != Field.LABEL_OPTIONAL:
        kind = f"unexpected label {field.label} {kind}"
    options = "".join(f" [{option.name}]" for option, _ in field.options.ListFields())
    return f"{kind} {field.name} = {field.number}{options}"


def enum_values(enum: descriptor_pb2.EnumDescriptorProto) -> dict[str, int]:
    return {value.name: value.number for value in enum.value}


def enums() -> dict[str, dict[str, int]]:
    """Every enum by name; one inside a message as `Message.Enum`."""
    found = {enum.name: enum_values(enum) for enum in FILE.enum_type}
    for message in FILE.message_type:
        for enum in message.enum_type:
            found[f"{message.name}.{enum.name}"] = enum_values(enum)
    return found


def method_line(method: descriptor_pb2.MethodDescriptorProto) -> str:
    """A method as the table writes it: `Request -> stream Response`."""
    request, response = (
        f"{'stream ' if streams else ''}{name.removeprefix(f'.{FILE.package}.')}"
        for name, streams in (
            (method.input_type, method.client_streaming),
            (method.output_type, method.server_streaming),
        )
    )
    return f"{request} -> {response}"


def test_the_package_and_syntax_are_the_interfaces() -> None:
    assert (FILE.syntax, FILE.package) == (TABLE["syntax"], TABLE["package"])
    assert not FILE.extension
    assert not FILE.dependency


@pytest.mark.parametrize("service", TABLE["services"])
def test_a_service_has_exactly_these_methods(service: str) -> None:
    methods = {s.name: s.method for s in FILE.service}[service]
    assert {m.name: method_line(m) for m in methods} == TABLE["services"][service]


def test_there_are_exactly_these_services_messages_and_enums() -> None:
    assert {service.name for service in FILE.service} == set(TABLE["services"])
    assert set(MESSAGES) == set(TABLE["messages"])
    assert set(enums()) == set(TABLE["enums"])


@pytest.mark.parametrize("name", TABLE["messages"])
def test_a_message_has_exactly_these_fields(name: str) -> None:
    message = MESSAGES[name]
    lines = [field_line(message, field) for field in message.field]
    assert sorted(lines) == sorted(TABLE["messages"][name]["fields"])
    assert not message.oneof_decl
    assert not message.extension_range
    assert all(nested.options.map_entry for nested in message.nested_type)


@pytest.mark.parametrize("name", TABLE["enums"])
def test_an_enum_has_exactly_these_values(name: str) -> None:
    assert enums()[name] == TABLE["enums"][name]


def test_the_types_of_fields_are_those_of_the_table_not_namesakes_elsewhere() -> None:
    for message in FILE.message_type:
        for field in message.field:
            assert field.type_name in ("", *qualified_names(message)), (message.name, field.name)


def qualified_names(message: descriptor_pb2.DescriptorProto) -> set[str]:
    inside = [n.name for n in message.nested_type] + [n.name for n in message.enum_type]
    nested = [f"{message.name}.{name}" for name in inside]
    top = [*MESSAGES, *(enum.name for enum in FILE.enum_type)]
    return {f".{FILE.package}.{name}" for name in (*top, *nested)}


@pytest.mark.parametrize("service", TABLE["services"])
def test_the_grpc_classes_offer_every_method(service: str) -> None:
    servicer = getattr(api_pb2_grpc, f"{service}Servicer")
    assert {name for name in vars(servicer) if not name.startswith("_")} == set(
        TABLE["services"][service]
    )


def test_a_changed_field_is_noticed() -> None:
    message = descriptor_pb2.DescriptorProto()
    message.CopyFrom(MESSAGES["AuthConfig"])
    before = [field_line(message, field) for field in message.field]
    message.field[1].number = 7
    message.field[2].options.Clear()
    message.field[3].label = Field.LABEL_REPEATED
    message.field[4].type = Field.TYPE_BYTES
    after = [field_line(message, field) for field in message.field]
    assert [line for line in after if line not in before] == [
        "string password = 7 [debug_redact]",
        "string auth = 3",
        "repeated string server_address = 4",
        "bytes identity_token = 5 [debug_redact]",
    ]
