"""Quick lending: a resource for an owner who holds nothing else, without a scope and without a lock."""

from __future__ import annotations

from _thread import get_ident
from time import monotonic
from typing import Any

from wirestate.errors import NoActiveScopeError, ScopeClosedError
from wirestate.resources.failures import attach, cause, named, note, raise_failures
from wirestate.resources.loans import Loan, Quick
from wirestate.resources.meter import FOLD_AT
from wirestate.resources.questions import Questions
from wirestate.resources.scopes import MISSING, Scope, current
from wirestate.waiting import BLOCKING, World, drive


class QuickLending(Questions):
    """Lend by dictionary operations that no other thread can split (a lock alone would take a fifth of the time).

    An owner has a loan or a scope. Who makes a scope lists it first and takes the loan off then; who lends lists
    the loan first and looks for a scope then: at least one of the two sees the other.
    """

    def _lend(self, quick: Quick, owner_id: str) -> Any:  # Any: the resource
        """Lend at once to an owner who holds nothing; MISSING: the full way must be gone."""
        # What the provider resolves by itself would live in the scope that is current here; only scopes tell listeners.
        if current.get() is not None or self.ears is not None or (self.owners and owner_id in self.owners):
            return MISSING
        recipe, acquire, release = quick
        loan = Loan()
        loan.recipe = recipe
        loan.release = release
        loan.by = get_ident()
        loan.place = None
        loan.since = 0.0
        try:
            if self._loans.setdefault(owner_id, loan) is not loan:
                return MISSING
            if self.closed or (self.owners and self.listed(owner_id) is not None):
                return self._withdraw(owner_id, loan)
            began = monotonic()
            if acquire is not None:
                loan.value = loan.handle = value = acquire()
            elif (opened := recipe.start(owner_id)) is not None:
                value, loan.handle = opened
                loan.value = value
            else:  # it has to wait
                return self._withdraw(owner_id, loan)
            loan.since = now = monotonic()
        except NoActiveScopeError as error:  # the provider resolves what needs a scope: the full way makes one
            return self._withdraw(owner_id, loan, error)
        except BaseException as error:
            self._fail(owner_id, loan, error)
            raise named(recipe.name, error) from cause(error)
        takes = recipe.meter.takes  # meter.opened() unrolled
        takes.append(now - began)
        if len(takes) > FOLD_AT:
            recipe.meter.fold()
        if loan.place is not None:
            self._arrive(loan, loan.place)
        return value

    def _fail(self, owner_id: str, loan: Loan, error: BaseException) -> None:
        loan.recipe.meter.failed(error)
        if hasattr(loan, "handle"):  # an interrupt, after it was opened
            try:
                loan.recipe.finish(loan.handle, error)
            except Exception as failure:  # the interrupt stays the error
                attach(error, [failure])
        self._withdraw(owner_id, loan, error)

    def _withdraw(self, owner_id: str, loan: Loan, error: BaseException | None = None) -> object:
        """Take *loan* back, of which nothing came; return MISSING."""
        with self._lock:
            if self._loans.get(owner_id) is loan:
                del self._loans[owner_id]
            place = loan.place
        if place is not None:
            assert loan.opening is not None, "nothing came of it"
            place.settle(loan.recipe, loan.opening)
            drive(self._uncount(loan.recipe.name, place, error, BLOCKING))
        return MISSING

    async def _uncount(self, name: str, scope: Scope, error: BaseException | None, world: World) -> None:
        """Take back the count of what could not be had."""
        raise NotImplementedError

    def _arrive(self, loan: Loan, place: Scope) -> None:
        """Put what was opened into the scope that its owner has got meanwhile."""
        with self._lock:  # until the one who made the scope is done
            opening = loan.opening
            if opening is None:
                return  # it saw the resource
            loan.keep(place)
        opening.finish()
        if place.closed:  # closed meanwhile: nobody else will end it
            drive(place.end_one(loan.recipe, None, BLOCKING))
            raise ScopeClosedError(place.owner_id, loan.recipe.name)

    def _give_loan_back(self, name: str | None, owner_id: str, error: BaseException | None, world: World) -> bool:
        """End what *owner_id* has as *name* (None: whatever it is), if it is a loan; False: the full way."""
        if type(owner_id) is not str:
            owner_id = str(owner_id)
        loan = self._loans.get(owner_id)
        if loan is None or not loan.since or (loan.recipe.name != name and name is not None) or self.ears is not None:
            return False
        if loan.recipe.waits_in(world):
            return False
        found = self._loans.pop(owner_id, None)
        if found is not loan:  # another thread released it too, and was faster
            if found is not None:  # and its owner has begun anew
                with self._lock:
                    owner = self.owners.get(owner_id)  # which somebody may have made meanwhile
                    found.move(self._new_owner(owner_id) if owner is None or owner.closed else owner)
            return False
        failure = self._ended(owner_id, loan, error)
        if failure is not None:
            raise_failures([failure], error, owner_id)
        return True

    def _ended(self, owner_id: str, loan: Loan, error: BaseException | None) -> BaseException | None:
        """End *loan*, which was taken off the list; return what its release raised."""
        recipe, release, failure = loan.recipe, loan.release, None
        try:
            if release is None:
                recipe.finish(loan.handle, error)
            else:
                release(loan.handle)
        except BaseException as raised:  # told by the caller, who may have more to end
            failure = raised
        if recipe.metered:
            recipe.meter.holds.append(monotonic() - loan.since)  # folded with the next that is taken
        if failure is None or failure is error:  # a release that raises its outcome again says nothing new
            return None
        note(failure, f"raised while {recipe.name!r} of {owner_id!r} was released")
        return failure
