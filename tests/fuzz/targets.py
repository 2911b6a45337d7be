"""The parsers of foreign bytes, each with inputs to begin with."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Generator
from pathlib import Path, PosixPath
from typing import cast
from xml.etree.ElementTree import ParseError

from mirror.bundle import members, s3_answers, seal, sums
from mirror.bundle.bucket import BucketAddress
from mirror.bundle.format import parse_part_name, parse_part_size
from mirror.bundle.location import Readable
from mirror.bundle.seekable import SeekableFile
from mirror.bundle.shards import AgreedPlan
from mirror.bundle.staging import JOURNAL, read_journal
from mirror.bundle.static_server import remote_folder
from mirror.config import PullConfig
from mirror.documents import parse_json, parse_rate, parse_yaml
from mirror.errors import DamagedBundleError, MirrorError
from mirror.modes.required import from_digest_list
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState
from mirror.nodeconfig.cluster import load_access, load_nodes
from mirror.nodeconfig.pki import parse_certificates
from mirror.oci import Digest, Manifest, Reference, Repository
from mirror.oci.layer_stream import TarStream, decompressed
from mirror.oci.layers import Layers, read_files
from mirror.oci.root_fs import Leaf, RootFs
from mirror.registry import ConnectionOptions, answers, http1
from mirror.registry import options as stored
from mirror.registry.answers import from_answer, from_token_server
from mirror.registry.auth import Authenticator, parse_challenges
from mirror.registry.downloads import _CONTENT_RANGE, FileState, _check_range
from mirror.registry.hosts import Home, Proxy
from mirror.registry.manifests import next_link
from mirror.registry.retries import TransientFailure, retry_after_s
from mirror.registry.transport import Transport, Wire
from mirror.release.constraints import Constraint, read_version
from mirror.release.contracts import parse_contract
from mirror.release.discovery import parse_changelog, parse_components, parse_release
from mirror.release.items import parse_extra_images
from mirror.release.selection import parse_filter, parse_platform
from mirror.run import Run
from mirror.signing import verify
from mirror.sync.inventory import Inventory
from mirror.sync.publication_state import Published, reached
from mirror.sync.statement import Statement
from mirror.sync.tree import RegistryTree
from mirror.watch.monitoring import parse_page
from mirror.watch.settings import WatchSettings
from tests.fuzz import samples
from tests.fuzz.engine import Target

DIGEST = b"sha256:" + b"a" * 64
HOST = "registry.example:5000"


def text(data: bytes) -> str:
    """The bytes as a text: a JSON or YAML document, a flag."""
    return data.decode("utf-8", "replace")


def header(data: bytes) -> str:
    """The bytes as the value of a header."""
    return data.decode("latin-1")


class Memory(PosixPath):
    """A path whose file is in memory."""

    data = b""

    @classmethod
    def of(cls, data: bytes) -> Memory:
        """A file that holds `data`."""
        made = cls("file")
        made.data = data
        return made

    def read_bytes(self) -> bytes:
        return self.data

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.data.decode(encoding or "utf-8", errors or "strict")


class Archive(Readable):
    """An archive in memory."""

    def __init__(self, data: bytes) -> None:
        self.path, self.size, self._data = Path("platform.tar.zst"), len(data), data

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise DamagedBundleError("it ends before them", where=self.path.name)
        yield self._data[offset : offset + size]

    def close(self) -> None:
        pass


class Folder:
    """Stands in for a bundle's folder, of which a journal is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, name: str, most: int) -> bytes:
        assert name == JOURNAL
        return self._data[:most]


class Line(http1.Stream):
    """A connection on which an answer has come, in pieces of a size that it tells itself."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._piece = 1 + (data[0] % 64 if data else 0)

    def receive(self, most: int, wait: http1.Wait, *, least: int = 1) -> bytes:
        piece = self._data[self._at : self._at + min(most, max(least, self._piece))]
        self._at += len(piece)
        return piece

    def send(self, data: http1.Piece, wait: http1.Wait, seconds: float) -> None:
        pass


_PATIENCE = http1.Patience(9, 9, 9, lambda: None)


def _answer(data: bytes) -> object:
    connection = http1.Connection(Line(data), lambda _connection, _keep: None)
    connection.send(b"", None, _PATIENCE)
    response = answers.Response(connection, "GET", "http://x/", None)
    size = sum(map(len, response.pieces()))
    return response.status, answers.is_page(response.headers), min(size, 3)


def _layer(data: bytes) -> object:
    return len(read_files([lambda: iter([data])], ["version.json", "link", "x"]))


def _root_fs(data: bytes) -> object:
    layers = Layers([lambda: iter([data])], "image", 1 << 20, lambda: None)
    files = RootFs(layers, max_entries=1000)
    places = [one.place for one in files.root.children.values() if isinstance(one, Leaf)]
    return sum(len(piece) for _, pieces in files.data(places) for piece in pieces)


def _tar(data: bytes) -> object:
    chunks, compressed = decompressed(iter([data]), "layer")
    stream = TarStream(chunks, "layer", end_marker=not compressed)
    count = 0
    for entry in stream:
        count += 1
        if entry.size < 4096:
            stream.read()
    return min(count, 4)


def _frames(data: bytes) -> object:
    file = SeekableFile(Archive(data))
    with_data = 0
    for chunk in file.chunks(0, min(file.size, 1 << 16)):
        with_data += len(chunk)
    return file.frames


def _members(data: bytes) -> object:
    return len([*members.members(Archive(data))]) if data else 0


_HOME = Home(HOST, f"https://{HOST}")
_TOKENS = Authenticator(HOST, ConnectionOptions(), credentials=None)


def _link(data: bytes) -> object:
    found = next_link([header(data)])
    return None if found is None else _HOME.resolved(found, f"https://{HOST}/v2/a/tags/list")[:9]


def _location(data: bytes) -> object:
    url = _HOME.resolved(header(data), f"https://{HOST}/v2/a/blobs/uploads/")
    return _HOME.holds(url), _HOME.trusts(url)


def _range(data: bytes) -> object:
    match = _CONTENT_RANGE.fullmatch(header(data))
    return match is not None


_PLAIN = ConnectionOptions(plain_http=True)
_FILES = Transport(Wire(HOST, options=_PLAIN, credentials=None), Run())


def _range_answer(data: bytes) -> object:
    connection = http1.Connection(Line(data), lambda _connection, _keep: None)
    connection.send(b"", None, _PATIENCE)
    response = answers.Response(connection, "GET", f"http://{HOST}/a.tar", None)
    _check_range(_FILES, response, "a.tar", (5, 15), FileState(100, '"e"'))
    match = _CONTENT_RANGE.fullmatch(response.headers["content-range"])
    assert response.status == 206
    assert match is not None
    assert (match[1], match[2]) == ("5", "14")
    return match[3]


def _s3_list(data: bytes) -> object:
    tree = s3_answers.parsed(data)
    found = [
        one for kind in ("Contents", "Upload", "Part") for one in tree.iterfind(f"{{*}}{kind}")
    ]
    sizes = [s3_answers.number(one, "Size") for one in found]
    assert all(0 <= size < 10**20 for size in sizes)
    return len(found) > 1, s3_answers.text(tree, "IsTruncated", "")[:4]


def _s3_refusal(data: bytes) -> object:
    headers = http1.Headers([("retry-after", header(data[:20]))])
    error = s3_answers.refusal(400 + (data[0] if data else 0), headers, data, "GET s3://b/x")
    assert str(error).isprintable()
    return type(error)


def _bucket_address(data: bytes) -> object:
    found = BucketAddress.parse(text(data))
    assert BucketAddress.parse(str(found)) == found
    return bool(found.prefix)


def _bundle_address(data: bytes) -> object:
    with remote_folder(text(data), options=_PLAIN) as folder:
        assert str(folder).startswith("http")
    return None


def _fleet_page(data: bytes) -> object:
    said = parse_page(data)
    assert len(said.errors) <= 6
    assert len(said.waiting) <= 300
    return said.rate is None, len(said.errors)


class _Notes:
    """Stands in for a registry that has one manifest under every name."""

    def __init__(self, data: bytes) -> None:
        self.client, self._data = self, data

    def locate(self, path: str) -> str:
        return path

    def manifest(self, _repository: str, _reference: str) -> Manifest:
        return Manifest.parse(self._data, None)


def _agreed(data: bytes) -> object:
    found = AgreedPlan.from_json(data)
    assert AgreedPlan.from_json(found.to_json()) == found
    return len(found.files), len(found.uploads)


_PUBLISHED = Published(Digest.parse(DIGEST.decode()), Statement.from_json(samples.stated()))


def _reached(data: bytes) -> object:
    found = reached(cast(RegistryTree, _Notes(data)), _PUBLISHED)
    return found is None or found.utcoffset()


def _challenge(data: bytes) -> object:
    return tuple(one.scheme for one in parse_challenges([header(data)]))[:4]


def _token(data: bytes) -> object:
    return len(_TOKENS._read(data, 0.0, "token server").value)


def _refusal(data: bytes) -> object:
    status = 400 + (data[0] if data else 0)
    headers = http1.Headers([("content-type", "application/json"), ("retry-after", header(data))])
    error = from_answer(status, headers, data, where="x", host=HOST)
    from_token_server(status, headers, data, where="x", host=HOST)
    return type(error)


def _retry_after(data: bytes) -> object:
    found = retry_after_s(header(data))
    assert found is None or 0 <= found < 1e12
    return found is None


def _reference(data: bytes) -> object:
    found = Reference.parse(text(data))
    assert Reference.parse(str(found)) == found
    return None


def _repository(data: bytes) -> object:
    found = Repository.parse(text(data))
    assert Repository.parse(str(found)) == found
    return None


def _digest(data: bytes) -> object:
    found = Digest.parse(text(data))
    assert str(found).encode() == data
    return found.algorithm


def _manifest(data: bytes) -> object:
    manifest = Manifest.parse(data, None)
    assert manifest.descriptor.size == len(data)
    return manifest.is_index, min(3, len(manifest.children))


def _part(data: bytes) -> object:
    return parse_part_name(text(data)) is None


def _seal(data: bytes) -> object:
    found = seal.parse_seal(data, "inventory.json")
    assert seal.parse_seal(found.to_json(), "again") == found
    return len(found.archives)


def _statement(data: bytes) -> object:
    found = Statement.from_json(data)
    assert Statement.from_json(found.to_json()) == found
    return found.generation > 1


def _settings(data: bytes) -> object:
    return type(RegistrySettings.load(text(data)))


def _contract(data: bytes) -> object:
    annotation = base64.b64encode(data).decode()
    return type(parse_contract(annotation, name="a", version="v1.0.0", where="x"))


def _signature(data: bytes) -> object:
    verify(samples.SIGNED, data, samples.PUBLIC_KEY)
    raise AssertionError("a signature that nobody made")


def of(
    run: Callable[[bytes], object],
    *seeds: bytes,
    tokens: str = "",
    allowed: tuple[type[Exception], ...] = (MirrorError,),
) -> Target:
    """A target whose `tokens` are separated by white space."""
    return Target(run, allowed, seeds, tuple(map(str.encode, tokens.split())))


_JSON = '{ } [ ] : , " null true 1e999 NaN -0 "\\ud800" \\u0000'
_YAML = _JSON + " &a *a !!int !!binary !!set !!timestamp <<: - ? | > --- ... 0x 1_0 .inf 1:1"
_SPEC = "sha256: sha512: application/vnd. @ : / .. v1.70.0 latest [::1] localhost"
_DOCUMENT = "schemaVersion mediaType config layers manifests digest size urls annotations subject"

TARGETS: dict[str, Target] = {
    # -- names -------------------------------------------------------------------------------------
    "reference": of(_reference, b"h:5/a/b:v1@" + DIGEST, b"a", tokens=_SPEC),
    "repository": of(_repository, b"registry.example:5000/a/b-c", b"[::1]:5/a", tokens=_SPEC),
    "digest": of(_digest, DIGEST, b"sha512:" + b"0" * 128, tokens=_SPEC),
    "bucket address": of(
        _bucket_address, b"s3://bundles/of/today", b"s3://b-1.c", tokens=_SPEC + " s3:// .. //"
    ),
    "bundle address": of(
        _bundle_address,
        b"https://files.example/a%20b",
        b"http://[::1]:8080/x",
        tokens=_SPEC + " https:// .. ? # @ %2F %",
    ),
    "proxy address": of(
        lambda data: bool(Proxy.parse(text(data)).port),
        b"http://u:p@proxy:3128",
        b"socks5://[::1]",
        tokens=_SPEC,
    ),
    "version": of(lambda data: read_version(text(data)) is None, b"v1.70.0-rc.1+b", b"1"),
    "constraint": of(
        lambda data: bool(Constraint.parse(text(data))),
        b">=1.64.0 <2 || ~1.2 , ^3.x",
        b"!=1 - 2",
        tokens=">= <= != ~ ^ || - * x 1.2.3-a, =v1",
    ),
    "filter": of(
        lambda data: type(parse_filter(text(data))),
        b"console@>=1.0.0",
        b"console@=v1.0.0+stable",
        tokens=_SPEC + " @ = + ^ ~",
    ),
    "platform filter": of(
        lambda data: type(parse_platform(text(data))),
        b"^1.64",
        b"=v1.70.0+stable",
        tokens=_SPEC + " @ = + ^ ~",
    ),
    "part name": of(_part, b"platform.tar.0007.chunk", b"platform.tar"),
    "part size": of(
        lambda data: type(parse_part_size(text(data))),
        b"1.5GiB",
        b"10",
        tokens="K M G KiB kB e9 inf nan _ dvd",
    ),
    "rate": of(
        lambda data: type(parse_rate(text(data))),
        b"1.5 MiB/s",
        allowed=(ValueError,),
        tokens="K M G KiB kB /s e9 inf nan _",
    ),
    # -- headers and answers -----------------------------------------------------------------------
    "challenge": of(
        _challenge,
        b'Bearer realm="https://a/token",service="r",scope="repository:a:pull"',
        b"Basic realm=a, Negotiate dGVzdA==",
        tokens='Bearer Basic realm= " , \\ = scope=',
    ),
    "link": of(
        _link,
        b'</v2/a/tags/list?n=2&last=b>; rel="next"',
        b'<a>; rel=prev, <b>; title="x,y"; rel=next',
        allowed=(MirrorError, ValueError),
        tokens='< > ; , rel= rel="next" next " http://[::1 //h',
    ),
    "location": of(
        _location,
        b"https://registry.example:5000/v2/a/blobs/uploads/1?_state=x",
        b"/v2/a/blobs/uploads/2",
        b"http://\xff@[::1]:99999/",
        tokens="http:// https:// // [ ] @ : :99999 ? # %",
    ),
    "content range": of(_range, b"bytes 0-9/100", b"bytes */5", tokens="bytes - / *"),
    "range answer": of(
        _range_answer,
        b'HTTP/1.1 206 P\r\nContent-Range: bytes 5-14/100\r\nETag: "e"\r\n\r\n0123456789',
        b"HTTP/1.1 416 R\r\nContent-Range: bytes */100\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nLast-Modified: x\r\n\r\n",
        allowed=(MirrorError, TransientFailure, http1.WireError),
        tokens='HTTP/1.1 206 200 Content-Range: bytes 5-14/100 */ Content-Length: ETag: W/ "e"',
    ),
    "S3 list": of(
        _s3_list,
        b"<L><IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size></Contents></L>",
        b'<?xml version="1.0" encoding="UTF-8"?><L xmlns="x"><Part><Size>5</Size></Part></L>',
        allowed=(MirrorError, ParseError),
        tokens='<Contents> </Contents> <Size> </Size> <? <! &lt; &#0; xmlns= encoding="utf-16"',
    ),
    "S3 refusal": of(
        _s3_refusal,
        b"\x03<Error><Code>AccessDenied</Code><Message>no</Message></Error>",
        b"g<Error><Code>SlowDown</Code></Error>",
        tokens="<Error> <Code> </Code> <Message> </Message> SlowDown &#27; &#x202e;",
    ),
    "shards' plan": of(
        _agreed,
        b'{"asked":{"shards":2},"seal":"{}","files":{"a":"eA=="},"uploads":{"b":"u"},'
        b'"signature":"s"}',
        allowed=(ValueError,),
        tokens=_JSON,
    ),
    "reached note": of(
        _reached,
        samples.noted(DIGEST.decode()),
        tokens=_JSON + " 0001-01-01T00:00:00+23:59 9999-12-31T23:59:59-23:59 2026-W01-1",
    ),
    "fleet page": of(
        _fleet_page,
        b'{"replicas":{"a":{"waiting":"w","errors":["e"]},"b":null},'
        b'"progress":{"a":{"bytes":1,"seconds":2.5}}}',
        allowed=(ValueError,),
        tokens=_JSON + " bytes seconds replicas progress 1e-300",
    ),
    "retry after": of(
        _retry_after,
        b"120",
        b"Fri, 31 Dec 1999 23:59:59 GMT",
        tokens="GMT +0000 -9999 Jan 0000 99999",
    ),
    "http answer": of(
        _answer,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.0 404 N\nContent-Encoding: gzip\n\n" + gzip.compress(b"hello", mtime=0),
        allowed=(MirrorError, http1.WireError),
        tokens="HTTP/1.1 Content-Length: Transfer-Encoding: chunked 0 ffffffff Connection: close",
    ),
    "token answer": of(
        _token,
        b'{"token":"abc","expires_in":300,"issued_at":"2020-01-01T00:00:00Z"}',
        b'{"access_token":"x","refresh_token":"y"}',
        tokens=_JSON + " token access_token expires_in refresh_token",
    ),
    "refusal": of(
        _refusal,
        b'\x04{"errors":[{"code":"DENIED","message":"no","detail":{"a":[1]}}]}',
        b'\x13{"details":"x"}',
        tokens=_JSON + " errors code message detail",
    ),
    # -- content -----------------------------------------------------------------------------------
    "manifest": of(_manifest, *samples.manifests(), tokens=_JSON + " " + _DOCUMENT),
    "layer": of(_layer, *samples.layers()),
    "root file system": of(_root_fs, *samples.layers()),
    "tar stream": of(_tar, *samples.layers(), tokens="ustar 0000644 path= size= GNU.sparse.map="),
    "version.json": of(
        lambda data: type(parse_release(data, "x")),
        b'{"version":"v1.70.0","requirements":{"k8s":"1.27"},"disruptions":{"1.70":["a"]}}',
        tokens=_JSON + " version suspend requirements disruptions",
    ),
    "images_digests.json": of(
        lambda data: len(parse_components(data, "x", "y")),
        b'{"module":{"image":"' + DIGEST + b'"}}',
        tokens=_JSON,
    ),
    "extra_images.json": of(
        lambda data: len(parse_extra_images(data, "x")), b'{"image":"v1.0.0"}', tokens=_JSON
    ),
    "changelog": of(
        lambda data: len(parse_changelog(data, "x")), b"a:\n  fixes:\n    - summary: b\n"
    ),
    "contract": of(_contract, *samples.contracts(), tokens=_YAML + " anyOf noneOf constraint"),
    # -- bundles -----------------------------------------------------------------------------------
    "bundle members": of(
        _members, samples.archive(), tokens="ustar path= size= blobs/sha256/ 0000644"
    ),
    "zstd frames": of(_frames, samples.frames()),
    "seal": of(_seal, samples.sealed(), tokens=_JSON + " archives blobs tags manifests size"),
    "sums": of(
        lambda data: len(sums.parse(data)),
        b"a" * 64 + b"  platform.tar\n" + b"\\" + b"b" * 64 + b" *a\\nb\n",
        b"SHA256 (a) = " + b"c" * 64,
    ),
    "bundle journal": of(
        lambda data: len(read_journal(Folder(data))[1]),  # type: ignore[arg-type]  # only read from
        b"parts 0\n" + DIGEST + b" 17\n",
        tokens="parts sha256: sha512:",
    ),
    "inventory": of(
        lambda data: len(Inventory.from_document(parse_json(data)).repositories),
        samples.inventory(),
        allowed=(MirrorError, ValueError),
        tokens=_JSON,
    ),
    "statement": of(
        _statement, samples.stated(), tokens=_JSON + " generation former tool restores"
    ),
    "signature": of(_signature, b"A" * 86 + b"==", b"MEUCIQ=="),
    # -- settings ----------------------------------------------------------------------------------
    "JSON": of(
        lambda data: type(parse_json(data)),
        b'{"a": [1, -2.5e3, null, "\\u00e9"]}',
        allowed=(ValueError,),
        tokens=_JSON,
    ),
    "YAML": of(
        lambda data: type(parse_yaml(data)),
        b"a: [1, x, 0x10]\nb: &c\n- |\n  d\n",
        allowed=(ValueError,),
        tokens=_YAML,
    ),
    "ModuleConfig": of(_settings, *samples.module_configs(), tokens=_YAML),
    "registry state": of(
        lambda data: type(RegistryState.load(text(data))),
        b"mode: Local\ntarget_mode: Proxy\nconditions: '[]'\n",
        tokens=_YAML,
    ),
    "nodes": of(
        lambda data: len(load_nodes(Memory.of(data))),
        b"- name: a\n  address: 10.0.0.1\n  master: true\n",
        tokens=_YAML,
    ),
    "cluster access": of(
        lambda data: type(load_access(Memory.of(data))), b"masters: [10.0.0.1]\n", tokens=_YAML
    ),
    "digest list": of(
        lambda data: type(from_digest_list(text(data))),
        DIGEST,
        tokens=_JSON + " " + _SPEC,
    ),
    "pull settings": of(
        lambda data: type(PullConfig.load(Memory.of(data), {})),
        b"source: a/b\ninclude-module: [console]\nlimit-rate: 10MB/s\n",
        tokens=_YAML,
    ),
    "daemon settings": of(
        lambda data: type(WatchSettings.load(Memory.of(data))),
        b"registries:\n  a: {address: 'a:5000'}\n  b: {address: 'b:5000'}\nroot: x\nleader: a\n",
        tokens=_YAML,
    ),
    "stored logins": of(
        lambda data: len(stored._read(Memory.of(data))[0]),
        b'{"auths":{"a":{"auth":"YTpi"}},"credHelpers":{"b":"c"},"credsStore":"d"}',
        tokens=_JSON,
    ),
    "certificates": of(
        lambda data: len(parse_certificates(text(data), "x")), samples.CERTIFICATE.encode()
    ),
}
