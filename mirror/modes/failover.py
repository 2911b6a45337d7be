"""One reading, offered to one endpoint after the other until one has what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mirror.errors import (
    DeniedError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import EndpointDown, EndpointUp, OnEvent, Retrying, Warned
from mirror.modes.endpoints import Endpoint
from mirror.modes.health import HealthMemory
from mirror.registry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Patience:
    """What all readings of a client share: memory, retries, waiting, who listens.

    A reading goes round all endpoints up to `policy.attempts` times, as long as some failed in a
    way that may pass.
    """

    health: HealthMemory[Endpoint]
    policy: RetryPolicy
    sleep: Callable[[float], object]
    on_event: OnEvent


@dataclass(slots=True)
class Reading:
    """Which endpoint to ask next for `what`, and what to say in the end. Used by one thread.

        reading = Reading("...", endpoints, patience)
        for endpoint in reading:
            try:
                found = ask(endpoint)
            except MirrorError as err:
                reading.failed(endpoint, err)
            else:
                reading.served(endpoint)
                return found
        raise reading.verdict()

    `what` names the content, equally for all endpoints.
    """

    what: str
    endpoints: Sequence[Endpoint]
    patience: Patience
    _errors: dict[Endpoint, MirrorError] = field(default_factory=dict)
    """What each endpoint said in this round."""
    _rounds: int = 0
    was_served: bool = False

    def __iter__(self) -> Iterator[Endpoint]:
        patience = self.patience
        while True:
            well = {one for one in self.endpoints if patience.health.is_well(one)}
            self._errors.clear()
            yield from patience.health.in_order(self.endpoints, self.what)
            if self.was_served:  # and its user went on, to hear what the others have
                return
            self._rounds += 1
            if self._rounds >= patience.policy.attempts or not self._may_help_to_wait(well):
                return
            delay_s = patience.policy.delay_s(self._rounds)
            patience.on_event(Retrying(self.what, self._rounds, delay_s, self._in_few_words()))
            patience.sleep(delay_s)

    def _witnesses(self) -> list[Endpoint]:
        """Those whose word is needed for something to be absent.

        A door adds nothing where the replicas behind it were asked themselves.
        """
        return [one for one in self.endpoints if not one.is_door] or list(self.endpoints)

    def _may_help_to_wait(self, well: set[Endpoint]) -> bool:
        """Whether another round may end better than this one.

        Where somebody answered, if only that it lacks this, there is no waiting for endpoints that
        were failing before: a machine that is gone for good must not delay each question.
        """
        passing = {
            one
            for one, error in self._errors.items()
            if isinstance(error, RegistryError) and error.may_pass
        }
        somebody_answered = any(
            isinstance(error, RegistryNotFoundError | DeniedError)
            for error in self._errors.values()
        )
        if somebody_answered:
            passing &= well & set(self._witnesses())
        return bool(passing)

    def _in_few_words(self) -> str:
        failing = [
            one.host
            for one, error in self._errors.items()
            if not isinstance(error, RegistryNotFoundError)
        ]
        return f"{', '.join(failing)} cannot be read from"

    def progressed(self) -> None:
        """Some of it has arrived: patience starts anew."""
        self._rounds = 0

    def served(self, endpoint: Endpoint) -> None:
        """`endpoint` had it."""
        self.was_served = True
        self._well(endpoint)
        self.patience.health.served(endpoint, self.what)

    def absent(self, endpoint: Endpoint, error: RegistryNotFoundError | None = None) -> None:
        """`endpoint` answered that it does not have it."""
        self._well(endpoint)
        self.patience.health.lacked(endpoint, self.what)
        self._errors[endpoint] = error or RegistryNotFoundError(
            f"{endpoint.host}: {self.what} is not there", where=self.what, status=404
        )

    def failed(self, endpoint: Endpoint, error: MirrorError) -> None:
        """`endpoint` did not deliver.

        Raises:
            MirrorError: `error`, when no other endpoint would do better.
        """
        health = self.patience.health
        match error:
            case RegistryNotFoundError():
                self.absent(endpoint, error)
                return
            case DeniedError():
                self._well(endpoint)
                # Another endpoint may let us in, but nobody is to find that out by accident.
                if len(self.endpoints) > 1 and health.denied(endpoint):
                    self.patience.on_event(Warned(str(error)))
            case RegistryError() if _is_of_the_endpoint(error):
                rest_s = health.failed(endpoint)
                if rest_s is not None and len(self.endpoints) > 1:
                    self.patience.on_event(EndpointDown(endpoint.host, str(error), rest_s))
            case IntegrityError() | InvalidManifestError():
                health.lacked(endpoint, self.what)
                if len(self.endpoints) > 1:
                    self.patience.on_event(Warned(f"{endpoint.host}: {error}"))
            case _:
                raise error
        self._errors[endpoint] = error

    def _well(self, endpoint: Endpoint) -> None:
        if self.patience.health.answered(endpoint) and len(self.endpoints) > 1:
            self.patience.on_event(EndpointUp(endpoint.host))

    def verdict(self) -> MirrorError:
        """What to raise after the last endpoint: absent only if every one of them said so."""
        witnesses = [self._errors.get(one) for one in self._witnesses()]
        if all(isinstance(error, RegistryNotFoundError) for error in witnesses):
            errors = [error for error in witnesses if error is not None]
        else:
            errors = list(self._errors.values())
        if len(errors) == 1:
            return errors[0]
        worst = min(errors, key=_gravity)
        if not isinstance(worst, RegistryError):
            return worst
        lines = [
            f"{self.what}: none of {len(errors)} endpoints has it to give:",
            *(f"  {error}" for error in errors),
        ]
        told = type(worst)(
            "\n".join(lines), where=worst.where, status=worst.status, codes=worst.codes
        )
        told.may_pass = any(isinstance(one, RegistryError) and one.may_pass for one in errors)
        return told


def _is_of_the_endpoint(error: RegistryError) -> bool:
    """Whether another endpoint may do better: the failure is no answer to the question."""
    if isinstance(error, UnreachableError) or error.status is None:
        return True
    return not 400 <= error.status < 500


def _gravity(error: MirrorError) -> int:
    """What to tell first of several failures, and how to call them all."""
    for rank, kind in enumerate((DeniedError, UnreachableError)):
        if isinstance(error, kind):
            return rank
    if isinstance(error, RegistryNotFoundError):
        return 9
    return 3 if isinstance(error, RegistryError) else 2
