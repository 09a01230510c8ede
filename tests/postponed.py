"""Functions whose annotations are postponed, with names that exist for type checkers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from dependency_injector.wiring import Provide, inject

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from wirestate import FunctionContext
    from wirestate import FunctionContext as Visit

    Database = Annotated[Session, Provide["db"]]
    Row = dict[str, Any]
    Limit = int


def annotated(record: dict[str, Any], where: FunctionContext, db: Annotated[Any, Provide["db"]]) -> dict[str, Any]:
    return {**record, "state": where.state, "rows": db.query("SELECT 1 AS one")}


@inject
def by_default(record: dict[str, Any], db: Session = Provide["db"]) -> dict[str, Any]:
    return {**record, "more": db.query("SELECT 2 AS two")}


class Readable:
    def __call__(self, tx: dict[str, Any], db: Annotated[Any, Provide["db"]]) -> dict[str, Any]:
        return {"db": db}


def readable_in_part(tx: dict[str, Any], db: Annotated["Session", Provide["db"]]) -> dict[str, Any]:  # noqa: UP037
    return {"db": db}


def hidden(tx: dict[str, Any], db: Annotated[Session, Provide["db"]]) -> dict[str, Any]:
    return {"db": db}


def hidden_with_default(tx: dict[str, Any], db: Annotated[Session, Provide["db"]] = None) -> dict[str, Any]:  # type: ignore[assignment]
    return {"db": db}


def hidden_alias(tx: dict[str, Any], db: Database) -> dict[str, Any]:
    return {"db": db}


class Hidden:
    def __call__(self, tx: dict[str, Any], db: Annotated[Session, Provide["db"]]) -> dict[str, Any]:
        return {"db": db}

    def method(self, tx: dict[str, Any], db: Annotated[Session, Provide["db"]]) -> dict[str, Any]:
        return {"db": db}


def of_no_matter(tx: Row, context: Visit, limit: Limit = 3) -> dict[str, Any]:
    return {"context": type(context).__name__, "limit": limit}
