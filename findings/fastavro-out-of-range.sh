#!/usr/bin/env bash
# Guess: a number that the Avro schema has no room for raises when it is
#   written: 2147483648 as "int" (32 bits), 1e40 as "float".
# What is so: fastavro writes both. The "int" is written as a longer varint that
#   fastavro itself reads back; the float becomes infinity. The reference library
#   (avro) raises for both: AvroTypeException, OverflowError.
# Versions: fastavro 1.13.1, avro 1.12.1.
# Why it matters: milliseconds since 1970, or a counter of samples, in a field
#   of type "int" works until a reader in another language meets it; a value out
#   of range turns into inf without a word. fastavro.validate() does notice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q fastavro==1.13.1 avro==1.12.1
v/bin/python - <<'PY'
import io
import json

import avro.errors
import avro.io
import avro.schema
import fastavro
from fastavro.validation import ValidationError, validate

FIELDS = [{"name": "count", "type": "int"}, {"name": "value", "type": "float"}]
SCHEMA = {"type": "record", "name": "Sample", "fields": FIELDS}


def fast(record: dict[str, object]) -> dict[str, object]:
    """Write and read a record with fastavro."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, SCHEMA, record)
    buffer.seek(0)
    return fastavro.schemaless_reader(buffer, SCHEMA, SCHEMA)


def reference(record: dict[str, object]) -> str:
    """Write a record with the reference library, and say what happened."""
    writer = avro.io.DatumWriter(avro.schema.parse(json.dumps(SCHEMA)))
    try:
        writer.write(record, avro.io.BinaryEncoder(io.BytesIO()))
    except (avro.errors.AvroException, OverflowError) as error:
        return type(error).__name__
    return "written"


large, huge = {"count": 2**31, "value": 1.0}, {"count": 1, "value": 1e40}
print("int 2147483648: fastavro", fast(large), "avro", reference(large))
print("float 1e40:     fastavro", fast(huge), "avro", reference(huge))
assert fast(large)["count"] == 2**31, "fastavro refuses, or cuts, an int that is too large now"
assert fast(huge)["value"] == float("inf"), "fastavro refuses a float that is too large now"
assert (reference(large), reference(huge)) == ("AvroTypeException", "OverflowError")
try:
    validate(large, SCHEMA)
except ValidationError:
    print("fastavro.validate: ValidationError")
else:
    raise AssertionError("validate takes it too now")
PY
