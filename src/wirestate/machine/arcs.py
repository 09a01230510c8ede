"""Arcs in a configuration, wherever they stand -> ``Arc``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from wirestate.errors import listed, nearest
from wirestate.machine.declarations import uses
from wirestate.machine.definition import Arc, CatchKind
from wirestate.machine.faults import NOT_AVAILABLE, TWO_SPELLINGS, WRONG_VALUE, Report, did_you_mean
from wirestate.machine.guards import CATCH_NAMES, NAMES
from wirestate.machine.keys import ARC_KEYS, Fields
from wirestate.machine.reading import Node
from wirestate.machine.references import References
from wirestate.machine.variables import as_written

CATCH_KINDS: tuple[CatchKind, ...] = get_args(CatchKind)
_CATCH_KEYS: dict[str, CatchKind] = {"on_error": "error", "on_reject": "reject", "on_timeout": "timeout"}
_PUSH_KEYS = ("target_network", "return_state", "data_mapping", "result_mapping", "data_isolation", "inherit")


@dataclass(frozen=True, slots=True)
class Arcs:
    """Reads the arcs of one network."""

    report: Report
    references: References

    def of_state(self, source: str, fields: Fields) -> list[Arc]:
        """Return the arcs that stand inside a state: ordinary ones in their order, then catch arcs."""
        found = [*self._listed(source, fields, "arcs"), *self._listed(source, fields, "on_complete")]
        for key, kind in _CATCH_KEYS.items():
            found += self._listed(source, fields, key, kind)
        return found

    def outer(self, fields: Fields) -> list[Arc]:
        """Return the arcs that stand beside the states."""
        return list(self._listed(None, fields, "arcs"))

    def _listed(self, source: str | None, fields: Fields, key: str, kind: CatchKind | None = None) -> Iterator[Arc]:
        for node in fields.items(key):
            if isinstance(node.value, str) and source is not None:
                yield Arc(source, node.value, catch=frozenset([kind] if kind else []), place=node.place)
            elif isinstance(node.value, dict):
                arc = self._arc(source, node, f"{fields.what}: an arc in {key!r}", kind)
                if arc is not None:
                    yield arc
            else:
                self.report.fault(WRONG_VALUE, f"{fields.what}: an arc is a mapping, not {node.kind}", node.place)

    def _arc(self, source: str | None, node: Node, what: str, kind: CatchKind | None) -> Arc | None:
        fields = Fields(node, ARC_KEYS, what, self.report)
        said = fields.text("from")
        if source is None and not fields.need("from"):
            return None
        if source is not None and said not in {None, source}:
            message = f"{what} says 'from: {as_written(said or '')}' but stands in state {source!r}"
            self.report.fault(TWO_SPELLINGS, message, fields.place_of("from"))
        if self._is_push(fields) or not fields.need("target"):
            return None
        catch = self._catch(fields, kind)
        names = CATCH_NAMES if catch else NAMES
        return Arc(
            source=source or said or "",
            target=fields.text("target"),
            condition=self.references.one(fields, "condition", "condition", names),
            transforms=self.references.several(fields, "transforms", "transform", names),
            resources=uses(fields, self.report),
            priority=fields.integer("priority", least=None) or 0,
            catch=catch,
            name=fields.text("name"),
            metadata=fields.free("metadata"),
            place=fields.place_of("target"),
        )

    def _is_push(self, fields: Fields) -> bool:
        said = next((key for key in _PUSH_KEYS if key in fields), None)
        if said is not None:
            message = f"{fields.what}: push arcs ({said!r}) are not available; this version runs one network"
            self.report.fault(NOT_AVAILABLE, message, fields.place_of(said), "A later version brings them.")
        return said is not None

    def _catch(self, fields: Fields, kind: CatchKind | None) -> frozenset[CatchKind]:
        nodes = fields.items("catch")
        if kind is not None:
            if nodes:
                message = f"{fields.what}: the key says what is caught; leave 'catch' out"
                self.report.fault(TWO_SPELLINGS, message, fields.place_of("catch"))
            return frozenset([kind])
        known: tuple[str, ...] = (*CATCH_KINDS, "complete") if len(nodes) == 1 else CATCH_KINDS
        for node in nodes:
            if node.value not in known:
                near = nearest(node.value, known) if isinstance(node.value, str) else None
                message = f"{fields.what}: 'catch' must be one of {listed(known)}"
                self.report.fault(WRONG_VALUE, message, node.place, did_you_mean(near))
        return frozenset(caught for caught in CATCH_KINDS if any(node.value == caught for node in nodes))
