"""Which service does a command mean? ``MODULE:NAME`` is a Service or a function that returns one; a plain name is one that
Kafka knows, for commands that need nothing of its code."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType

from choreo.broker import Broker
from choreo.errors import ChoreoError, ConfigurationError, did_you_mean
from choreo.runtime.reading import rename
from choreo.service import Service
from choreo.settings import Resolved, ServiceSettings

Flags = Mapping[str, object]
_PLACE = ("bootstrap", "topic_prefix", "topic_names")
"""Settings that say where a service's topics are."""
_OURS = f"{Path(__file__).parents[1]}{os.sep}"


@dataclass(frozen=True, slots=True)
class Target:
    """A service on a Kafka, and the words that meant it."""

    service: Service
    resolved: Resolved
    said: str

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def settings(self) -> ServiceSettings:
        return self.resolved.settings

    @property
    def broker(self) -> Broker:
        return self.service.broker(self.settings)

    @property
    def words(self) -> str:
        """What a command that needs no code says to mean this service again."""
        only_code_knows = any(
            setting.origin == "code" and (setting.name in _PLACE or setting.name.startswith("kafka ")) for setting in self.resolved.origins
        )
        return (self.said if only_code_knows else self.name) + self._flags

    @property
    def code_words(self) -> str:
        """What a command that needs its code says."""
        return (self.said if ":" in self.said else "MODULE:NAME") + self._flags

    @property
    def _flags(self) -> str:
        given = [setting for setting in self.resolved.origins if setting.name in _PLACE and setting.origin.startswith("flag")]
        return "".join(f" --{setting.name.replace('_', '-')} {setting.value}" for setting in given)

    @property
    def names(self) -> Callable[[str], str]:
        """The broker's name of a logical topic."""
        return rename(self.settings.topic_prefix, self.settings.topic_names)


def find_target(words: str, flags: Flags) -> Target:
    """The service that `words` mean, a plain name or MODULE:NAME, with its settings. Raises ConfigurationError."""
    service = load_service(words) if ":" in words else Service(words)
    return Target(service, service.resolve(flags), words)


def load_target(words: str, flags: Flags) -> Target:
    """The same for commands that need the service's code: MODULE:NAME only."""
    service = load_service(words)
    return Target(service, service.resolve(flags), words)


def load_service(target: str) -> Service:
    """The Service that MODULE:NAME means. Raises ConfigurationError that says what to write instead."""
    module_name, colon, name = target.partition(":")
    if not (colon and module_name and name):
        raise ConfigurationError(f"{target!r}: say MODULE:NAME, for example shop.payments.service:payments")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(f"{target!r}: {module_name} is a file; say its module: {dotted}:{name}")
    module = _import(module_name)
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ConfigurationError(f"{module_name} has no {name!r}{did_you_mean(name, _candidates(module))}") from None
    return found if isinstance(found, Service) else _called(found, target)


def _import(module_name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigurationError(f"no module {missing!r} (looked in {here} and in the environment of {sys.executable})") from error
        raise ConfigurationError(f"{module_name} imports {missing!r}, which is not there{_where(error)}") from error
    except ChoreoError as error:
        raise ConfigurationError(f"{module_name}: {error}{_where(error)}") from error
    except Exception as error:
        raise ConfigurationError(f"importing {module_name}: {type(error).__name__}: {error}{_where(error)}") from error


def _called(found: object, target: str) -> Service:
    shown = f"{target} is a {type(found).__name__}"
    if not callable(found) or isinstance(found, type):
        raise ConfigurationError(f"{shown}, not a Service; name a Service, or a function that returns one")
    if inspect.iscoroutinefunction(found):
        raise ConfigurationError(f"{target} is an 'async def'; make it a plain function that returns a Service (which opens nothing)")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ConfigurationError(f"{target} can't be called without arguments: {error}; give its parameters defaults") from error
    try:
        made = found()
    except ChoreoError as error:
        raise ConfigurationError(f"{target}: {error}{_where(error)}") from error
    except Exception as error:
        raise ConfigurationError(f"{target} raised {type(error).__name__}: {error}{_where(error)}") from error
    if not isinstance(made, Service):
        raise ConfigurationError(f"{target} returned a {type(made).__name__}, not a Service")
    return made


def _where(error: Exception) -> str:
    """`` (service.py:12)``: the innermost frame that is neither ours nor Python's import machinery."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", _OURS)) and "/importlib/" not in frame.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({PurePath(error.filename).name}:{error.lineno})"
    return f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _candidates(module: ModuleType) -> list[str]:
    """What NAME may have meant: the module's services and its own functions."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Service) or (inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"))
    ]
