from dependency_injector.wiring import Provide, inject

from wirestate import Reject


def read_order(order):
    if not order["id"]:
        raise Reject("is missing", field="id")
    return {"id": int(order["id"]), "amount": float(order["amount"])}


@inject
def store(order, db=Provide["database"]):
    db.query("CREATE TABLE IF NOT EXISTS orders (id INTEGER, amount REAL)")
    db.query("INSERT INTO orders VALUES (:id, :amount)", **order)
