"""Reading a config file: within limits, as the trainer would, with the line of every key, and with one clear message where it cannot be.

Source of what the trainer does: ostris/ai-toolkit 27a03a91, toolkit/config.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from estimator.errors import InputError, Problem
from estimator.job import Place
from estimator.jsontext import read_json
from estimator.tree import Builder, KeyPath, expand

MAX_CONFIG_BYTES = 2**20  # a config with a thousand prompts is a tenth of this
JSON_ENDINGS = (".json", ".jsonc")
YAML_ENDINGS = (".yaml", ".yml")
_FIRST_PROCESS: KeyPath = ("config", "process", 0)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A config as plain values. `lines` has the line of each value of the file by its path; `overridden`: paths that `--set` has put over
    these."""

    name: str
    data: Mapping[str, object]
    lines: Mapping[KeyPath, int]
    overridden: frozenset[KeyPath] = frozenset()

    def place(self, path: KeyPath) -> Place:
        """Where `path` stands. The line is that of the nearest enclosing key if the key itself is not in the file."""
        if any(path[:n] in self.overridden for n in range(1, len(path) + 1)):
            return Place("--set", key_name(path))
        for n in range(len(path), 0, -1):
            if path[:n] in self.lines:
                return Place(self.name, key_name(path), self.lines[path[:n]])
        return Place(self.name, key_name(path))


def key_name(path: KeyPath) -> str:
    """A path as people write it, and as `--set` takes it: keys of the first process without their prefix.

    >>> key_name(("config", "process", 0, "datasets", 1, "resolution"))
    'datasets.1.resolution'
    """
    if path[:3] == _FIRST_PROCESS and len(path) > 3:
        path = path[3:]
    return ".".join(map(str, path))


def read_config(path: str | Path) -> ConfigFile:
    """The config file at `path`, aliases followed, `${VARIABLES}` of the environment put in, nothing interpreted.

    Raises InputError: no such file, no regular file, too large, empty, no text, no YAML or JSON, nested or expanded beyond measure,
    duplicate keys, a variable that is not set, a top level that is no map.
    """
    name = os.fspath(path)
    text = read_text(name)
    if not name.endswith(JSON_ENDINGS + YAML_ENDINGS):
        why = f"the trainer takes {', '.join(YAML_ENDINGS + JSON_ENDINGS)}, in lower case"
        raise _fail(name, "the file's name does not say whether it is YAML or JSON", why, "rename it, for instance to config.yaml")
    text = substitute_environment(text, os.environ, name)
    data, lines = parse(text, name, json=name.endswith(JSON_ENDINGS))
    if data is None:
        raise _fail(name, "the file holds no settings", "", "give a training config of AI Toolkit, or an explicit run file")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise _fail(
            name, f"the file holds {kind}, not keys", "", "a config begins with `job: extension` and `config:`", line=lines.get((), 1)
        )
    return ConfigFile(name, data, lines)


def read_text(name: str) -> str:
    """The file's text as it stands, line ends included. Raises InputError where it is no regular text file of a config's size."""
    return _decode(_read_bytes(name), name)


def parse(text: str, name: str, *, json: bool = False) -> tuple[object, Mapping[KeyPath, int]]:
    """The plain values of a YAML or JSON text and their lines. Raises InputError."""
    builder = Builder(name)
    if json:
        read_json(text, builder)
    else:
        from estimator.yamltext import read_yaml

        read_yaml(text, builder)
    return expand(builder)


def substitute_environment(text: str, environment: Mapping[str, str], name: str) -> str:
    """Replace every ${NAME} by the environment's value, anywhere in the text (in comments too), as the trainer does.

    Raises InputError naming all that are not set. Linear in the length of the text, whatever it holds.
    """
    if "${" not in text:
        return text
    pieces, missing, last, at = [], [], 0, text.find("${")
    while at >= 0:
        end = text.find("}", at + 2)
        if end < 0:
            break
        if end == at + 2:  # "${}" names nothing and stays
            at = text.find("${", at + 2)
            continue
        variable = text[at + 2 : end]
        if variable in environment:
            pieces += [text[last:at], environment[variable]]
        else:
            missing.append((variable, text.count("\n", 0, at) + 1))
        last = end + 1
        at = text.find("${", last)
    if missing:
        raise InputError(
            *(
                Problem(
                    f"the environment variable {variable[:80]!r} is not set",
                    Place(name, "", line),
                    "the trainer replaces ${...} by it, even in a comment",
                    "set it as the trainer's machine has it, or write the value out",
                )
                for variable, line in missing[:20]
            )
        )
    return "".join([*pieces, text[last:]])


def _fail(name: str, what: str, why: str, fix: str, line: int | None = None) -> InputError:
    return InputError(Problem(what, Place(name, "", line), why, fix))


def _read_bytes(name: str) -> bytes:
    try:
        info = os.stat(name)
    except FileNotFoundError:
        raise _fail(name, "no such file", "", _similar_file(name)) from None
    except (OSError, ValueError) as error:
        raise _fail(name, "cannot be read", _reason(error), "check the path and its permissions") from None
    if stat.S_ISDIR(info.st_mode):
        raise _fail(name, "this is a folder, not a config file", "", _config_inside(name))
    if not stat.S_ISREG(info.st_mode):
        raise _fail(name, "this is no regular file", "", "save the config to a file and give that")
    if info.st_size > MAX_CONFIG_BYTES:
        size = f"{info.st_size / 2**20:,.1f} MiB, more than {MAX_CONFIG_BYTES / 2**20:g} MiB"
        raise _fail(name, "too large to be a training config", size, "give the YAML or JSON config, not weights or data")
    try:
        with open(name, "rb") as file:
            return file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise _fail(name, "cannot be read", _reason(error), "check its permissions") from None


def _decode(raw: bytes, name: str) -> str:
    if not raw.strip():
        raise _fail(name, "the file is empty", "", "give a training config of AI Toolkit, or an explicit run file")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _fail(name, "the text is not UTF-8", "it begins as UTF-16 does, and the trainer reads UTF-8", "save it as UTF-8")
    if b"\0" in raw:
        raise _fail(name, "this is a binary file", "", "give the YAML or JSON config")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _fail(name, "the text is not UTF-8", f"byte 0x{raw[error.start]:02x}", "save it as UTF-8", line) from None


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _listing(folder: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder or ".") if entry.name.endswith(YAML_ENDINGS + JSON_ENDINGS))[:1000]
    except (OSError, ValueError):
        return []


def _similar_file(name: str) -> str:
    from difflib import get_close_matches

    folder, base = os.path.split(name)
    near = get_close_matches(base, _listing(folder), n=1)
    return f"did you mean {os.path.join(folder, near[0])}?" if near else "check the path"


def _config_inside(name: str) -> str:
    found = _listing(name)
    return f"give the file in it: {', '.join(os.path.join(name, f) for f in found[:3])}" if found else "give the config file itself"
