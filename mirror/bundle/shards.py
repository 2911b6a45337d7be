"""A bundle that several machines make in one bucket, each a share, without talking to each other.

What all go by lies in the bucket, put there by the first of them under the condition that nothing
is there (`AgreedPlan`): what was asked for, the seal, and the upload of each file. Who carries what
follows from that alone (`share`). The first that finds that all parts of a file have arrived claims
it, makes the object, reads it back for its sums and writes these down, in a small object of its
own. The first that finds the sums of all files seals.
"""

from __future__ import annotations

import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

from mirror.bundle.bucket import Bucket
from mirror.bundle.bucket_place import BucketPlace, plan_of
from mirror.bundle.follow import EntryCheck
from mirror.bundle.format import (
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SHARDS,
    Shard,
    file_names,
    share,
)
from mirror.bundle.multipart import BucketArchive
from mirror.bundle.place import Packing, hashes_of, is_leftover, noted_sums
from mirror.bundle.seal import Seal, check_limits, parse_seal
from mirror.bundle.staging import JOURNAL
from mirror.bundle.sums import CompanionFiles
from mirror.bundle.uploads import PART, Object
from mirror.documents import parse_json
from mirror.errors import (
    ConflictError,
    DamagedBundleError,
    InputError,
    IntegrityError,
    InvalidDigestError,
    MirrorError,
    RegistryNotFoundError,
    SignatureError,
    counted,
)
from mirror.events import PhaseAdvanced, PhaseStarted
from mirror.oci import Digest
from mirror.registry.downloads import FileState
from mirror.run import Run, gather
from mirror.signing import verify
from mirror.sync.inventory import canonical_json

_RECORD = re.compile(r"shard-[0-9]+" + re.escape(PARTIAL_SUFFIX))
_MOST_TRIES = 5
_GONE = (ConflictError, RegistryNotFoundError)
_CHANGING = (ValueError, KeyError, TypeError, AttributeError, InvalidDigestError, *_GONE)
_AGAIN = "give this bundle up with `mirror clean`, and run all shards again"


@dataclass(frozen=True, slots=True)
class AgreedPlan:
    """What all shards go by: what was `asked` for, as JSON values; the seal; the `files` beside the
    archives; and the id of each file's upload, by its name.

    Who signs the seal signs this, too, or would sign whatever somebody has put there.
    """

    asked: Mapping[str, Any]
    sealed: bytes = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    uploads: Mapping[str, str] = field(repr=False)
    signature: bytes = b""

    def to_json(self) -> bytes:
        files = {name: b64encode(data).decode() for name, data in self.files.items()}
        own = {"asked": self.asked, "seal": self.sealed.decode(), "uploads": self.uploads}
        return canonical_json(own | {"files": files, "signature": self.signature.decode()})

    def signed(self, sign: Callable[[bytes], bytes] | None) -> AgreedPlan:
        """The same with a signature of all else, where there is a key."""
        unsigned = replace(self, signature=b"")
        return self if sign is None else replace(self, signature=sign(unsigned.to_json()))

    @classmethod
    def from_json(cls, data: bytes) -> AgreedPlan:
        """Read one.

        Raises:
            ValueError: it is none.
        """
        try:
            found = parse_json(data)
            files = {str(name): b64decode(text) for name, text in found["files"].items()}
            uploads = {str(name): str(upload) for name, upload in found["uploads"].items()}
            signature = found["signature"].encode()
            return cls(dict(found["asked"]), found["seal"].encode(), files, uploads, signature)
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(str(err)) from err


class ShardPlace(BucketPlace):
    """A place in a bucket, where one machine fills its share.

    First `agreed`, or else `agree`; then a writer fills the share; then `close_files`, and `seal`.
    """

    def __init__(
        self, bucket: Bucket, shard: Shard, asked: Mapping[str, Any], packing: Packing, run: Run
    ) -> None:
        super().__init__(bucket, run)
        if packing.compress or not packing.resume:
            what = "--compress" if packing.compress else "--no-pull-resume"
            raise InputError(f"a bundle that several machines make takes no {what}; leave it out")
        self._shard, self.packing = shard, packing
        self._asked: dict[str, Any] = {
            **asked,
            "shards": shard.count,
            "images-bundle-chunk-size": packing.part_size,
            "gost-digest": packing.gost_digest,
            "signature": packing.sign is not None,
            "part": PART,
        }
        self._own: list[tuple[BucketArchive, Object]] = []
        self._agreed: AgreedPlan | None = None
        self._record = f"shard-{shard.number}{PARTIAL_SUFFIX}"
        self._noted: dict[str, Mapping[str, str]] = {}

    # -- what all go by ----------------------------------------------------------------------------

    def is_sealed(self) -> bool:
        """Whether the bundle of just this is there; what was left beside it is cleared up.

        Raises:
            InputError: something else is there, or is being made there.
            ConflictError: something else has come there meanwhile; what was uploaded is given up.
        """
        states, _ = self._found()
        if SEAL not in states:
            return False
        sealed = self._read(SEAL, states)
        seal = parse_seal(sealed, SEAL)
        first = next(iter(self._names(seal)), "")
        there = self._bucket.plan_of(first, self._run)
        if there is None or there[1] != self._plan_for(sealed):
            other = f"another bundle (inventory {seal.inventory.digest()})"
            if self._agreed is not None:
                super().clear()
                raise ConflictError(
                    f"{other} was sealed here meanwhile, so that what shards had uploaded is given "
                    "up",
                    where=self.where,
                    advice="see with `mirror clean` that nothing is left, name a new place and run "
                    "all shards again",
                )
            raise InputError(
                f"{self.where} has {other}, made without --shard or with other options; shards "
                "never replace one: name a new place, and give up with `mirror clean` what shards "
                "may have left here"
            )
        if any(map(is_leftover, states)):
            super().clear()
        return True

    def agreed(self) -> AgreedPlan | None:
        """What the first shard has put there; None if this is the first.

        Raises:
            InputError: something else is there, or is being made there.
        """
        states, self._agreed = self._found()
        if self._agreed is None and SEAL not in states:  # else the others were at the end just now
            self.check(force=False)
        return self._agreed

    def _found(self) -> tuple[Mapping[str, FileState], AgreedPlan | None]:
        """What lies here, and what all go by."""
        states = self._states()
        with suppress(*_GONE):
            return states, self._read_agreed(states)
        states = self._states()  # what was listed went: another sealed
        return states, self._read_agreed(states)

    def _read_agreed(self, states: Mapping[str, FileState]) -> AgreedPlan | None:
        if SHARDS not in states:
            if JOURNAL in states and self._read(JOURNAL, states) != canonical_json(self._asked):
                raise InputError(
                    f"a pull without --shard is under way in {self.where}; let it end, give it up "
                    "with `mirror clean`, or name another place for the shards"
                )
            return None
        try:
            found = AgreedPlan.from_json(self._read(SHARDS, states))
        except ValueError as err:
            told = f"it is not what shards agree upon: {err}"
            raise self._spoilt(DamagedBundleError, told, SHARDS) from err
        theirs, ours = dict(found.asked), self._asked
        names = {name: name for name in {**theirs, **ours}} | {"shards": "number of shards"}
        differing = [names[name] for name in names if theirs.get(name) != ours.get(name)]
        if differing:
            raise InputError(
                f"{self.where}: shard {self._shard} is asked for something else than the first one "
                f"was; they differ in {', '.join(sorted(differing))}; run all with the same "
                "options and version, or name another place"
            )
        if (key := self.packing.public_key) is not None:
            try:
                verify(replace(found, signature=b"").to_json(), found.signature, key)
            except SignatureError as err:
                told = "was not signed with this key: somebody else put it there; find out who"
                told = f"{self.where}/{SHARDS} {told} writes there, {_AGAIN}"
                raise SignatureError(told) from err
        return found

    def agree(self, seal: Seal, files: Mapping[str, bytes]) -> AgreedPlan:
        """Put down what all are to go by, unless another was first; what counts."""
        sealed = check_limits(seal)
        names, plan = self._names(seal), self._plan_for(sealed)
        begun = gather(names, lambda name: self._bucket.begin(name, plan, self._run), run=self._run)
        uploads = dict(zip(names, begun, strict=True))
        mine = AgreedPlan(self._asked, sealed, files, uploads).signed(self.packing.sign)
        data = mine.to_json()
        states = self._put_first(SHARDS, data)
        if not self._bucket.knows_conditions(SHARDS, data, self._run):
            if self.is_sealed():  # by the others, just now
                return mine
            super().clear()
            raise InputError(
                f"{self.where}: this S3 server does not know conditional writes (If-None-Match: *),"
                " without which several machines cannot agree; leave out --shard, or use a server "
                "that knows them"
            )
        self._agreed = self._read_agreed(states)  # which are listed
        # Even who was refused may have been first: an answer was lost, and it asked again.
        needless = uploads.items() - self._all.uploads.items()
        gather(needless, lambda one: self._bucket.abort(one[0], one[1], self._run), run=self._run)
        return self._all

    @property
    def _all(self) -> AgreedPlan:
        """What all go by."""
        assert self._agreed is not None, "first all agree"
        return self._agreed

    def _spoilt(self, kind: type[MirrorError], problem: str, name: str = "") -> MirrorError:
        """What to raise where shards cannot go on with what lies here."""
        where = f"{self.where}/{name}" if name else self.where
        return kind(problem, where=where, advice=_AGAIN)

    def _names(self, seal: Seal) -> list[str]:
        """The files that the archives are."""
        archives = sorted(seal.archives.items())
        size = self.packing.part_size
        return [one for name, each in archives for one in file_names(name, each.size, size)]

    def _plan_for(self, sealed: bytes) -> str:
        return plan_of(canonical_json(self._asked), sealed)

    # -- the share ---------------------------------------------------------------------------------

    def complete(
        self, _seal: Seal, _sealed: bytes, _packing: Packing, *, force: bool
    ) -> tuple[dict[str, int], str] | None:
        del force
        return None

    def begin(self, seal: Seal, sealed: bytes, _packing: Packing, _needed: int) -> bool:
        agreed = self._all
        beside = {name: Digest.of(data) for name, data in agreed.files.items()}
        fits = beside == {name: one.digest for name, one in seal.files.items()}
        if not fits or agreed.uploads.keys() != set(self._names(seal)):
            raise self._spoilt(DamagedBundleError, "it does not fit the seal in it", SHARDS)
        self._sealed, self._plan = agreed.sealed, self._plan_for(sealed)
        states = self._states()
        for name, data in ((JOURNAL, canonical_json(self._asked)), (PARTIAL_SEAL, self._sealed)):
            if name not in states:  # they say whose files lie here, for whoever cleans up
                self._bucket.put(name, data, self._run)
        return True

    def _resume(self, *, keep: bool) -> None:
        del keep
        pieces: list[tuple[BucketArchive, int, int]] = []
        for file in self._files.values():
            pieces += ((file, *ends) for ends in pairwise((0, *file.seams())))
        mine = share([stop - start for _, start, stop in pieces], self._shard)
        shares: dict[BucketArchive, tuple[int, int]] = {}
        for file, start, stop in (pieces[number] for number in mine):
            shares[file] = (shares.get(file, (start, stop))[0], stop)
        self._own = [
            (file, one)
            for file, (start, stop) in shares.items()
            for one in file.objects
            if one.start < stop and start < one.start + one.size
        ]
        try:
            try:
                self._resume_shares()
            except RegistryNotFoundError:  # of an upload that was completed just now
                self._resume_shares()
        except RegistryNotFoundError as err:
            told = f"an upload that all shards had agreed upon is gone ({err})"
            raise self._spoilt(ConflictError, told) from err
        for file in self._files.values():
            file.narrow(*shares.get(file, (0, 0)))

    def _resume_shares(self) -> None:
        states, uploads = self._states(), self._all.uploads
        own = {one.name: uploads[one.name] for _, one in self._own}
        for file in {file for file, _ in self._own}:
            file.resume(states, own)
        for _, one in self._own:
            one.upload = own[one.name]

    def clear(self) -> None:
        """Do nothing: others are at work here."""

    # -- completion --------------------------------------------------------------------------------

    def close_files(self) -> list[str]:
        """Complete objects whose parts have all arrived, read them back and write their sums
        down, for those files that this shard has a part of; the names of those it has read.

        Raises:
            IntegrityError: what lies in the bucket is not what was sent.
            ConflictError: a file is gone.
        """
        sums = self._sums()
        lacking = [(file, one) for file, one in self._own if one.name not in sums]
        todo = [
            (file, one) for file, one in lacking if file.join(one, partial(self._claims, one.name))
        ]
        if todo:
            self._run.on_event(PhaseStarted("reading back for the sums", len(todo)))
        states = self._states()
        lock = threading.Lock()  # over the record

        def note(pair: tuple[BucketArchive, Object]) -> None:
            file, one = pair
            if one.name not in states:
                raise self._spoilt(ConflictError, "it was complete, and is gone", one.name)
            digests = self._read_back(file, one, states[one.name])
            with lock:
                self._noted[one.name] = digests
                record = {"plan": self._plan, "files": self._noted}
                self._bucket.put(self._record, canonical_json(record), self._run)
            self._run.on_event(PhaseAdvanced())

        gather(todo, note, run=self._run)
        return sorted(self._noted)

    def _claims(self, name: str) -> bool:
        """Whether this shard does what must be done once about this file: it is the first
        that would, perhaps in an earlier run."""
        claim, mine = f"shard-claims-{name}{PARTIAL_SUFFIX}", str(self._shard.number).encode()
        states = self._put_first(claim, mine)
        try:
            found = self._read(claim, states)
        except _GONE:  # another sealed just now
            return False
        if found not in [b"%d" % number for number in range(1, self._shard.count + 1)]:
            raise self._spoilt(DamagedBundleError, "it names none of the shards", claim)
        return found == mine

    def _put_first(self, name: str, data: bytes) -> Mapping[str, FileState]:
        """Put an object unless there is one; what lies there then."""
        for _ in range(_MOST_TRIES):  # another may have removed it meanwhile
            self._bucket.put(name, data, self._run, only_new=True)
            states = self._states()
            if name in states:
                return states
        raise ConflictError(
            "the S3 server has it and does not list it",
            where=f"{self.where}/{name}",
            advice="use a server whose lists have what was put",
        )

    def _read_back(self, file: BucketArchive, one: Object, state: FileState) -> dict[str, str]:
        """The sums of an object, whose blobs must be right; one that lies in two files counts by
        these sums alone."""
        made = {name: make() for name, make in hashes_of(self.packing).items()}
        stop = one.start + one.size
        entries = (each for each in file.archive.entries if each.end <= stop)
        check = EntryCheck((each for each in entries if each.offset >= one.start), one.start)
        for piece in self._bucket.chunks(one.name, state, 0, one.size, self._run):
            for each in made.values():
                each.update(piece)
            check.update(piece)
        if check.wrong:
            wrong = f"{counted(len(check.wrong), 'file')} of {one.name}"
            told = f"{wrong} are not in the bucket as they were sent"
            raise self._spoilt(IntegrityError, told)
        return {name: each.hexdigest() for name, each in made.items()}

    def _sums(self) -> dict[str, Mapping[str, str]]:
        """The sums that any shard has written down, by file."""
        states, uploads = self._states(), self._all.uploads
        found: dict[str, Mapping[str, str]] = {}
        for name in filter(_RECORD.fullmatch, states):
            try:
                record = parse_json(self._read(name, states))
                if record["plan"] == self._plan:
                    noted = {
                        one: noted_sums(self.packing, each)
                        for one, each in record["files"].items()
                        if one in uploads
                    }
                    found |= noted
                    if name == self._record:
                        self._noted |= noted
            except _CHANGING:
                continue  # it changes just now, or goes
        return found

    def seal(self) -> list[str]:
        """Seal the bundle, if the sums of all its files are known; the names of those that lack."""
        sums = self._sums()
        lacking = sorted(set(self._all.uploads) - set(sums))
        if lacking or not self._claims(SEAL):
            return [] if self.is_sealed() else lacking or [SEAL]
        packing = self.packing
        beside = CompanionFiles(self._all.files, packing.sign, packing.gost_digest)
        self.take((), beside.render(self._sealed, sums), sums)
        super().clear()
        return []
