"""Functions whose annotations are postponed, with names that exist for type checkers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from dependency_injector.wiring import Provide, inject

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from wirestate import FunctionContext


def annotated(record: dict[str, Any], where: FunctionContext, db: Annotated[Any, Provide["db"]]) -> dict[str, Any]:
    return {**record, "state": where.state, "rows": db.query("SELECT 1 AS one")}


@inject
def by_default(record: dict[str, Any], db: Session = Provide["db"]) -> dict[str, Any]:
    return {**record, "more": db.query("SELECT 2 AS two")}
