"""Finding the registry's settings in what people have: a ModuleConfig, parts of it, many documents.

No message repeats a value: it could be a password at the wrong place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from mirror.documents import RepeatedKeyError, StrictLoader, line
from mirror.errors import InputError, InvalidSettingsError
from mirror.modes.rules import SECTIONS, Finding, no_mapping

_EXPECTED = (
    "expected a ModuleConfig named deckhouse, its settings, the registry section itself, or an "
    "InitConfiguration"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found: the `registry` section and `InitConfiguration.deckhouse`, None if absent."""

    registry: Mapping[str, Any] | None = None
    init: Mapping[str, Any] | None = None
    findings: tuple[Finding, ...] = ()


def find_registry(source: Path | str | Mapping[str, Any]) -> Found:
    """Find the settings in a file (`Path`), in YAML text (`str`), or in a mapping.

    Raises:
        InvalidSettingsError: the documents are not built as they must be.
        InputError: the file cannot be read, is no YAML, or speaks of no registry.
    """
    if isinstance(source, Mapping):
        return _of([source], "the settings")
    if isinstance(source, Path):
        where = str(source)
        try:
            raw: str | bytes = source.read_bytes()
        except OSError as err:
            raise InputError(f"cannot read {where}: {err.strerror}") from err
    else:
        where, raw = "the settings", source
    documents = read_documents(raw, where)
    if not documents and isinstance(source, Path):
        # As a redirection leaves it whose command failed. To read it as the deprecated kind of
        # Unmanaged, which has no settings, would plan a switch to that.
        raise InputError(f"{where} is empty; {_EXPECTED}")
    return _of(documents, where)


def read_documents(raw: str | bytes, where: str) -> list[Mapping[str, Any]]:
    """The YAML documents of a text, empty ones left out; messages never quote them.

    Raises:
        InputError: it is no YAML, or something in it is no mapping.
    """
    try:
        documents = list(yaml.load_all(raw, StrictLoader))
    # Not `from err`, whose text may quote the document.
    except RepeatedKeyError as err:
        raise InputError(f"{where}: {err.problem}{line(err)}") from None
    except ConstructorError as err:
        raise InputError(
            f"{where}: a value is not what it looks like{line(err)}; write it in quotes"
        ) from None
    except ComposerError as err:
        raise InputError(
            f"{where}: a value that begins with * must be in quotes{line(err)}"
        ) from None
    except yaml.MarkedYAMLError as err:
        raise InputError(f"{where} is no YAML: {err.problem}{line(err)}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{where} is no YAML") from None
    documents = [document for document in documents if document is not None]
    if not all(isinstance(document, Mapping) for document in documents):
        hint = "; to read a file, give its path as a Path" if where == "the settings" else ""
        raise InputError(f"{where}: {_EXPECTED}, found something that is no mapping{hint}")
    return documents


def _of(documents: Sequence[Mapping[str, Any]], where: str) -> Found:
    if len(documents) == 1 and "kind" not in documents[0] and "apiVersion" not in documents[0]:
        if "spec" in documents[0]:
            raise InputError(
                f"{where}: {_EXPECTED}, found a document with spec and without kind; add "
                "kind: ModuleConfig and metadata: {name: deckhouse}"
            )
        return _part(documents[0])
    configs = [one for one in documents if _is_module_config(one)]
    inits = [one for one in documents if one.get("kind") == "InitConfiguration"]
    if not documents:
        return Found(registry={})  # an empty section: the deprecated kind of Unmanaged
    if not configs and not inits:
        kinds = ", ".join(sorted({_called(one) for one in documents}))
        raise InputError(f"{where}: {_EXPECTED}, found {kinds}")
    for same in (configs, inits):
        if len(same) > 1:
            kind = same[0]["kind"]
            raise InputError(f"{where}: it holds {len(same)} documents {kind}; keep one")
    findings: list[Finding] = []
    registry = _registry(configs[0], findings) if configs else None
    init = _init(inits[0], findings) if inits else None
    if registry is None and init is None:
        registry = {}
    return Found(registry, init, tuple(findings))


def _called(document: Mapping[str, Any]) -> str:
    """How a document calls itself, for a message."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    kind = str(document.get("kind", "a document without kind"))[:40]
    return f"{kind} {str(name)[:40]}" if isinstance(name, str) else kind


def _is_module_config(document: Mapping[str, Any]) -> bool:
    if document.get("kind") != "ModuleConfig":
        return False
    metadata = document.get("metadata")
    return isinstance(metadata, Mapping) and metadata.get("name") == "deckhouse"


def _part(document: Mapping[str, Any]) -> Found:
    """Settings, or the section itself: the one has a `registry`, the other a mode or sections.

    Whatever else is taken for the section, so that a misspelt key is found and not passed over.
    """
    if "registry" in document and not {"mode", *SECTIONS} & document.keys():
        findings: list[Finding] = []
        section = _mapping(document["registry"], "registry", findings)
        return Found(section or {}, None, tuple(findings))
    return Found(registry=document)


def _registry(config: Mapping[str, Any], findings: list[Finding]) -> Mapping[str, Any] | None:
    spec = _mapping(config.get("spec"), "spec", findings)
    version = spec.get("version")
    if version not in (None, 1):
        findings.append(
            Finding("spec.version", "expected version 1 of the settings of module deckhouse")
        )
    settings = _mapping(spec.get("settings"), "spec.settings", findings)
    if settings.get("registry") is None:
        return None
    return _mapping(settings["registry"], "spec.settings.registry", findings)


def _init(document: Mapping[str, Any], findings: list[Finding]) -> Mapping[str, Any] | None:
    """The part about deckhouse; None where it sets nothing about the registry."""
    section = _mapping(document.get("deckhouse"), "deckhouse", findings)
    return section if any(key in INIT_KEYS for key in section) else None


INIT_KEYS = ("imagesRepo", "registryDockerCfg", "registryScheme", "registryCA")
"""The fields of `InitConfiguration.deckhouse` that are about the registry; it has others too."""


def _mapping(value: object, path: str, findings: list[Finding]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidSettingsError([*findings, Finding(path, no_mapping(value))])
    return value
