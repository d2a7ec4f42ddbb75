"""Prints as JSON what the generated modules that are its arguments declare: fields, enums and methods.

A program of its own, because Triton's client registers the same names as the project's stubs.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from google.protobuf import descriptor_pb2


def fields_of(message: Any) -> dict[str, list[Any]]:
    """Everything that decides how a message looks on the wire and in code."""
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    oneofs = [oneof.name for oneof in proto.oneof_decl]
    return {
        field.name: [
            field.number,
            field.type,
            field.label,
            field.type_name,
            oneofs[field.oneof_index] if field.HasField("oneof_index") else "",
        ]
        for field in proto.field
    }


def values_of(enum: Any) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def methods_of(service: Any) -> dict[str, list[Any]]:
    proto = descriptor_pb2.ServiceDescriptorProto()
    service.CopyToProto(proto)
    return {
        method.name: [
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        ]
        for method in proto.method
    }


def describe(message: Any) -> dict[str, Any]:
    """A message, and the messages and enums in it, by their full names."""
    found: dict[str, Any] = {message.full_name: fields_of(message)}
    for nested in message.nested_types:
        found |= describe(nested)
    return found | {enum.full_name: values_of(enum) for enum in message.enum_types}


found: dict[str, Any] = {}
for name in sys.argv[1:]:
    file = importlib.import_module(name).DESCRIPTOR
    for each in file.message_types_by_name.values():
        found |= describe(each)
    found |= {enum.full_name: values_of(enum) for enum in file.enum_types_by_name.values()}
    found |= {service.full_name: methods_of(service) for service in file.services_by_name.values()}
sys.stdout.write(json.dumps(found))
