"""What other packages' configurations may say and this one refuses, with the words that replace it."""

from __future__ import annotations

from collections.abc import Mapping

from wirestate.errors import nearest

_COPY_CONFIG = "nothing reads it; 'data_mode' chooses how records are handed on, for the machine or for one state"
REFUSED_KEYS: Mapping[str, str] = {
    "transaction": "use 'commit: run' or 'commit: 500'",
    "run_on_failure": (
        "after a failure only catch arcs are followed; give the failing state an 'on_error' arc to this state"
    ),
    "streaming": "pass max_in_flight=, workers= and rejects= to process_stream()",
    "execution": "use 'timeout', 'max_transitions' and 'commit', or pass max_workers= to process_batch()",
    "template": "nothing reads it; '$include: file' brings in a part of another file",
    "templates": "nothing reads them; '$include: file' brings in a part of another file",
    "copy_config": _COPY_CONFIG,
    "reference_config": _COPY_CONFIG,
    "direct_config": _COPY_CONFIG,
    "execution_strategy": "only 'depth_first' is built: the first true arc is followed and never left again",
}
# Values of refused keys that ask for what happens anyway.
HARMLESS: Mapping[str, object] = {"run_on_failure": False, "execution_strategy": "depth_first"}

# Keys that a later version brings where they are not known yet; each has a test.
LATER: Mapping[str, str] = {"commit": "each visit commits by itself"}
LATER_HELP = "A later version brings it."

PYTHON_CODE = "this is Python; move it to a function and name it here, or build with allow_inline_code=True"
SHORTHAND: Mapping[str, str] = {
    "success": "write \"data.get('valid', True)\"",
    "failure": "write \"not data.get('valid', True)\"",
}
VECTOR_STORE = "type 'vector_store' is not built; declare a 'custom' resource with the 'class' of yours"

_OTHER_BUILTINS: Mapping[str, str] = {
    "required_fields": "required", "required": "required", "not_empty": "required", "not_null": "required",
    "range": "in_range", "range_check": "in_range", "pattern": "matches", "regex": "matches",
    "type_check": "has_type", "types": "has_type", "length": "has_length", "enum": "one_of", "choices": "one_of",
    "map_fields": "rename", "field_mapper": "rename", "rename_fields": "rename", "convert_types": "convert",
    "type_converter": "convert", "cast": "convert", "enrich": "set_fields", "add_fields": "set_fields",
    "filter_fields": "keep", "select_fields": "keep", "remove_fields": "drop", "drop_fields": "drop",
    "normalize": "strip", "trim": "strip", "replace_values": "replace", "default_values": "defaults",
}  # fmt: skip
_PACKAGES = {"validators", "transformers", "transforms", "builtin", "builtins"}


def other_builtin(name: str, ours: Mapping[str, object]) -> str | None:
    """Return the built-in of ours that is nearest to ``validators.X`` or ``transformers.X``; empty if none is."""
    package, dot, rest = name.rpartition(".")
    if not dot or package.rpartition(".")[2] not in _PACKAGES:
        return None
    if rest in ours:
        return rest
    return _OTHER_BUILTINS.get(rest) or nearest(rest, ours) or ""
