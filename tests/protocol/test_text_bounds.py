"""Every text that comes over the network has a bound in its type, and errors about it have one, too."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import msgspec
import pytest
from msgspec.inspect import multi_type_info

import har_edge.protocol
from har_edge.errors import MAX_MESSAGE_TEXT, MessageError
from har_edge.protocol.deployment import Deployment, decode_deployment
from har_edge.protocol.results import decode_results
from har_edge.protocol.status import decode_heartbeat, decode_status

# Made and read in one process only: they never come from a payload as they are.
NOT_ON_THE_WIRE = {"Message"}


def structs() -> list[type[msgspec.Struct]]:
    """Return every struct that a module of the protocol defines and that has fields of its own on the wire."""
    found = dict[str, type[msgspec.Struct]]()
    for module in pkgutil.iter_modules(har_edge.protocol.__path__):
        loaded = import_module(f"har_edge.protocol.{module.name}")
        for name, one in inspect.getmembers(loaded, inspect.isclass):
            mine = one.__module__ == loaded.__name__ and issubclass(one, msgspec.Struct)
            if mine and not name.endswith("Event") and name not in NOT_ON_THE_WIRE | {"Unreadable", "Outgoing"}:
                found[f"{module.name}.{name}"] = one
    return list(found.values())


def unbounded(one: object, path: str, seen: set[type]) -> Iterator[str]:
    """Yield the paths of texts below a type that may have any length."""
    if isinstance(one, msgspec.inspect.StrType):
        if one.max_length is None and one.pattern is None:
            yield path
    elif isinstance(one, msgspec.inspect.StructType):
        if one.cls not in seen:
            seen.add(one.cls)
            for field in one.fields:
                yield from unbounded(field.type, f"{one.cls.__name__}.{field.name}", seen)
    elif isinstance(one, msgspec.inspect.UnionType):
        for each in one.types:
            yield from unbounded(each, path, seen)
    elif isinstance(one, msgspec.inspect.DictType):
        yield from unbounded(one.key_type, f"{path} (key)", seen)
        yield from unbounded(one.value_type, f"{path} (value)", seen)
    elif isinstance(one, msgspec.inspect.TupleType):
        for each in one.item_types:
            yield from unbounded(each, path, seen)
    elif isinstance(one, msgspec.inspect.Metadata):
        yield from unbounded(one.type, path, seen)
    elif isinstance(one, msgspec.inspect.CollectionType):
        yield from unbounded(one.item_type, path, seen)


def test_every_text_of_every_message_has_a_bound() -> None:
    all_structs, seen = structs(), set[type]()
    assert Deployment in all_structs and len(all_structs) > 30
    assert [path for info in multi_type_info(all_structs) for path in unbounded(info, "", seen)] == []


@pytest.mark.parametrize("read", [decode_deployment, decode_results, decode_status, decode_heartbeat])
@pytest.mark.parametrize("content", [b'{"%s": 1}', b'{"node": "%s"}', b'{"version": 1, "author": "%s"}', b'"%s"'])
def test_errors_about_long_texts_are_short(read, content) -> None:
    with pytest.raises(MessageError) as raised:
        read(content % (b"x" * 200_000))
    assert len(str(raised.value)) <= MAX_MESSAGE_TEXT


def test_the_text_of_an_error_is_cut() -> None:
    assert str(MessageError("a" * 5000)) == "a" * (MAX_MESSAGE_TEXT - 1) + "…"
    assert str(MessageError("window 5")) == "window 5"
