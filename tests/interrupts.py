"""A storm of KeyboardInterrupts, one at each place where Python looks for signals; run as a process of its own."""

from __future__ import annotations

import dis
import functools
import gc
import itertools
import sys
import threading
import time
import warnings
from types import CodeType, FrameType
from typing import Any

from wirestate import BaseResourceProvider, PoolConfig, ResourceManager, ResourcePool

DEADLINE = 0.5  # seconds


class Interrupter:
    """Raises a KeyboardInterrupt at the n-th such place in our modules about resources, or in those of *where*."""

    def __init__(self, at: int, where: str = "wirestate/resources/") -> None:
        self.at = at
        self.where = where
        self.seen = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if self.where not in frame.f_code.co_filename.replace("\\", "/") or _in_finalizer(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _places(frame.f_code):
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def _in_finalizer(frame: FrameType | None) -> bool:
    """Tell whether what is raised in *frame* would go no further."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@functools.cache
def _places(code: CodeType) -> frozenset[int]:
    """Return the instructions after a look for signals, where the same handler is in charge as before it."""
    handlers = [(entry.start, entry.end, entry.target) for entry in dis.Bytecode(code).exception_entries]

    def handler(offset: int) -> int | None:
        return next((target for start, end, target in handlers if start <= offset < end), None)

    return frozenset(
        after.offset
        for before, after in itertools.pairwise(dis.get_instructions(code))
        if (before.opname in ("RESUME", "JUMP_BACKWARD") or before.opname.startswith("CALL"))
        and handler(before.offset) == handler(after.offset)
    )


class Lists(BaseResourceProvider):
    def acquire(self, **options: Any) -> list[int]:
        return []


class Resetting(Lists):
    def reset(self, resource: list[int]) -> None: ...


def use(manager: ResourceManager, owner_id: str, way: str) -> None:
    if way == "scope":
        with manager.scope(owner_id) as owner, owner.state("s") as visit:
            visit.resource("db")
    else:
        with manager.resource_context("db", owner_id):
            pass


def interrupted(manager: ResourceManager, at: int, way: str) -> bool:
    """Use a resource and interrupt that; False if it was over before."""
    interrupter = Interrupter(at)
    sys._getframe().f_trace_opcodes = True  # Python 3.12 traces instructions only if a frame asks before settrace()
    sys.settrace(interrupter)
    try:
        use(manager, f"owner {at}", way)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interrupter.seen >= at


def storm(way: str) -> int:
    """Interrupt at each place in turn; return how many there were."""
    manager = ResourceManager()
    manager.register_provider("db", Lists("db"), PoolConfig(max_size=2, acquire_timeout=0.0))
    use(manager, "first", way)
    at = 1
    while interrupted(manager, at, way):
        manager.release_all(f"owner {at}")
        while manager.owners:  # interrupted before it was entered
            next(iter(manager.owners.values())).__exit__(None, None, None)
        gc.collect()
        pool = manager.get_metrics("db_pool")["db_pool"]
        assert (pool.used, pool.creating, pool.waiting) == (0, 0, 0), f"lost at place {at}: {pool}"
        at += 1
    with manager.resource_context("db", "a"), manager.resource_context("db", "b"):
        pass
    manager.close()
    return at


class Counted(Lists):
    """Counts what is out; nothing of it ends by being forgotten."""

    def __init__(self) -> None:
        super().__init__("db")
        self.out = 0

    def acquire(self, **options: Any) -> list[int]:
        self.out += 1
        return []

    def release(self, resource: list[int], error: BaseException | None = None) -> None:
        self.out -= 1


def kept(at: int) -> tuple[bool, bool]:
    """Interrupt an acquire; tell whether it was, and whether all that was opened has ended or can be given back."""
    provider = Counted()
    with ResourceManager() as manager:
        manager.register_provider("db", provider)
        interrupter = Interrupter(at)
        sys._getframe().f_trace_opcodes = True
        sys.settrace(interrupter)
        try:
            manager.acquire("db", "job")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        manager.release_all("job")
    return interrupter.seen >= at, provider.out == 0


def acquires() -> int:
    """Interrupt at each place of an acquire in turn; return at how many of them what was opened got lost."""
    lost, at = 0, 1
    while (outcome := kept(at))[0]:
        lost += not outcome[1]
        at += 1
    assert at > 10, "there was nothing to interrupt"
    return lost


def handed_over(at: int, way: str) -> tuple[bool, bool]:
    """Interrupt a release that somebody waits for; tell whether it was, and whether the other had to wait on."""
    pool = ResourcePool(Resetting("db") if way == "reset" else Lists("db"), PoolConfig(max_size=1))
    leases, waited = [pool.acquire()], []

    def wait() -> None:
        started = time.monotonic()
        pool.acquire(DEADLINE).release()
        waited.append(time.monotonic() - started)

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not pool.snapshot().waiting:
        time.sleep(0.0005)
    interrupter = Interrupter(at)
    sys._getframe().f_trace_opcodes = True
    sys.settrace(interrupter)
    try:
        leases[0].release(broken=way == "broken")
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    leases.clear()
    gc.collect()
    waiter.join()
    pool.acquire(0).release()
    now = pool.snapshot()
    assert (now.used, now.creating, now.waiting) == (0, 0, 0), f"lost at place {at}: {now}"
    return interrupter.seen >= at, waited[0] > DEADLINE


def hand_overs(way: str) -> int:
    """Interrupt at each place of a release in turn; return how often who waited was served at their deadline only."""
    warnings.simplefilter("ignore")  # each interrupt may lose the lease
    late, at = 0, 1
    while (outcome := handed_over(at, way))[0]:
        late += outcome[1]
        at += 1
    assert at > 10, "there was nothing to interrupt"
    return late


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        lost = acquires()
        assert lost <= 1, f"{lost} were lost"  # one: the provider has returned it, and nobody has it yet
    elif sys.argv[1] == "hand over":
        late = hand_overs(sys.argv[2])
        assert late <= 2, f"{late} waited on"  # one: popleft() gave a turn that nobody has
    else:
        assert storm(sys.argv[1]) > 50, "there was nothing to interrupt"
