"""Reading the old configuration as Synapse does, but remembering where each key stands."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import Problem

Path = tuple[str | int, ...]

COMMAND_LINE = "command line"


@dataclass
class Reading:
    """The merged configuration.

    :param values: top keys; a later file replaces an earlier one's, whole key by key.
    :param lines: ``file:line`` by path.
    :param files: the configuration files, in the order in which Synapse read them.
    :param config_dir: where Synapse looks for a signing key without a path.
    :param cwd: working directory of the process; relative paths start there.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    config_dir: str = "/"
    cwd: str = "/"
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def where(self, path: Path) -> str:
        """``file:line`` of a path, or of its nearest parent that has one."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return ""

    def absolute(self, path: str) -> str:
        """A path of the configuration, as the process saw it."""
        return posixpath.normpath(posixpath.join(self.cwd, path))


def read(found: Mapping[str, Any]) -> Reading:
    """Read and merge the configuration files that the running process was given.

    :param found: see docs/adopt.md; used are ``exec_start``, ``config_path``,
        ``config_files`` and ``working_directory``.
    """
    result = Reading(cwd=str(found.get("working_directory") or "/"))
    options = _options(found)
    texts: Mapping[str, str] = found.get("config_files") or {}
    for given in options.get("config", []) or [str(found["config_path"])]:
        path = result.absolute(given)
        if path in texts:
            result.files.append(path)
            continue
        inside = sorted(
            name for name in texts if posixpath.dirname(name) == path and name.endswith(".yaml")
        )
        if inside:
            result.files += inside
        else:
            result.problems.append(
                Problem(
                    path,
                    "Synapse was started with this configuration, but it could not be read",
                    "make it readable for root, or remove it from the unit if it is gone",
                )
            )
    if result.files:
        result.config_dir = posixpath.dirname(result.files[-1])
    if options.get("keys_directory"):
        result.config_dir = result.absolute(options["keys_directory"][-1])
    for path in result.files:
        _merge(result, path, texts[path])
    _apply_command_line(result, options)
    return result


def _options(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """The options of the command line that mean something for the configuration."""
    names = {
        "-c": "config",
        "--config-path": "config",
        "--config-directory": "keys_directory",
        "--keys-directory": "keys_directory",
        "-d": "database_path",
        "--database-path": "database_path",
        "--manhole": "manhole",
    }
    flags = {"--enable-registration": "enable_registration"}
    options: dict[str, list[str]] = {}
    words = iter(shlex.split(str(found.get("exec_start") or "")))
    for word in words:
        name, equals, value = word.partition("=")
        if name in names:
            value = value if equals else next(words, "")
            options.setdefault(names[name], []).append(value)
        elif word in flags:
            options.setdefault(flags[word], []).append("true")
    return options


def _apply_command_line(result: Reading, options: Mapping[str, list[str]]) -> None:
    given: dict[str, Any] = {}
    if options.get("enable_registration"):
        given["enable_registration"] = True
    if options.get("database_path"):
        given["database_path"] = options["database_path"][-1]
    if options.get("manhole"):
        port = options["manhole"][-1]
        given["manhole"] = int(port) if port.isdigit() else port
    for key, value in given.items():
        result.values[key] = value
        result.lines[(key,)] = COMMAND_LINE


def _merge(result: Reading, path: str, text: str) -> None:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            lines = dict(_walk(node, (), path, result, ()))
        value = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        result.problems.append(_broken(path, text, error))
        return
    except (RecursionError, ValueError, OverflowError) as error:
        result.problems.append(
            Problem(path, f"a value cannot be read: {error}", "correct it, then adopt again")
        )
        return
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        kind = "is empty" if value is None else f"holds a {type(value).__name__}, not keys"
        (result.problems if len(result.files) == 1 else result.warnings).append(
            Problem(path, f"{kind}: Synapse ignores such a file", "write the configuration there")
        )
        return
    for key in value:
        if key in result.values:
            result.warnings.append(
                Problem(
                    f"{lines.get((key,), path)} {key}",
                    f"also set at {result.where((key,))}; the later file counts, whole",
                    "remove the earlier one, so that nobody is misled",
                )
            )
            for stale in [step for step in result.lines if step[0] == key]:
                del result.lines[stale]
    result.values.update({str(key): item for key, item in value.items()})
    result.lines.update(lines)


def _walk(
    node: yaml.Node, path: Path, file: str, result: Reading, parents: tuple[int, ...]
) -> Iterator[tuple[Path, str]]:
    if id(node) in parents:
        raise ValueError("an anchor refers to itself")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            line = key_node.start_mark.line + 1
            place = f"{file}:{line}"
            if key in seen and key != "<<":
                result.warnings.append(
                    Problem(
                        f"{place} {key}",
                        f"the key stands twice (first in line {seen[key]}); the last one counts",
                        "remove the one that is not meant",
                    )
                )
            seen[key] = line
            yield (*path, key), place
            yield from _walk(value_node, (*path, key), file, result, (*parents, id(node)))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), f"{file}:{item.start_mark.line + 1}"
            yield from _walk(item, (*path, index), file, result, (*parents, id(node)))


def _broken(path: str, text: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark is not None else path
    what = str(getattr(error, "problem", None) or error).strip()
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in what:
        return Problem(place, "a tab is used to indent, YAML wants spaces", "use spaces")
    if "could not determine a constructor" in what:
        return Problem(
            place,
            f"{what.replace('could not determine a constructor for the tag ', 'the tag ')} "
            "means nothing to Synapse",
            "write the value itself; several -c files are Synapse's way to split a configuration",
        )
    return Problem(place, f"this is not YAML: {what}", "correct it; Synapse could not start either")
