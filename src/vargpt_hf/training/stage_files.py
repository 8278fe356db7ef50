"""Files of stages: finding them, also those that come with the package, and reading them; without importing torch."""

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from filelock import FileLock, Timeout

SHIPPED_FOLDER = Path(__file__).parent.parent / "examples"
_NO_STAGES = ("accelerate/", "tokenizer/")  # configurations of accelerate, and files of image tokenizers, lie there
_LOCK = ".training.lock"


def shipped_stages(folder: str = "") -> dict[str, Path]:
    """Files that come with the package, by name: stages, such as "lora" and "tiny/stage1", or those of another folder of examples."""
    names = {file.relative_to(SHIPPED_FOLDER).with_suffix("").as_posix(): file for file in sorted(SHIPPED_FOLDER.rglob("*.yaml"))}
    return {name: file for name, file in names.items() if (name.startswith(f"{folder}/") if folder else not name.startswith(_NO_STAGES))}


def find_stage(wanted: str | Path) -> Path:
    """The file of a stage, see `find_file`."""
    return find_file(wanted)


def find_file(wanted: str | Path, folder: str = "") -> Path:
    """The YAML file at a path, or one that comes with the package.

    Args:
        wanted: a path, or a name such as "lora", "tiny/stage1", "examples/lora.yaml".
        folder: of examples, among which to look; by default among stages.

    Raises:
        ValueError: neither a file nor such a name.
    """
    if Path(wanted).is_file():
        return Path(wanted)
    shipped, kind = shipped_stages(folder), f"an image {folder}'s" if folder else "a stage's"
    name = Path(wanted).as_posix().removeprefix("examples/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    what = f"{wanted} is a folder" if Path(wanted).is_dir() else f"There is no file {wanted}"
    raise ValueError(f"{what}: give {kind} YAML file, or one that comes with the package: {', '.join(shipped)}.")


def read_stage(file: str | Path) -> dict[str, Any]:
    """What a stage's file says.

    Raises:
        ValueError: a file that is no YAML, names a key twice, or holds no mapping.
        OSError: a file that cannot be read.
    """
    try:
        given = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file}{line}: this is no YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML file: {' '.join(str(error).split())}.") from error
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{file} must hold `key: value` lines.")
    return given


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML's own loader takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"the key `{key.value}` stands there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def refuse_unknown(unknown: Collection[str], known: Collection[str], where: str | Path) -> None:
    """Raises a ValueError that names each key nobody knows, with the nearest that somebody does."""
    if not unknown:
        return
    told = []
    for key in unknown:
        near = difflib.get_close_matches(key, known, n=1)
        told.append(f"`{key}`" + (f" (did you mean `{near[0]}`?)" if near else ""))
    raise ValueError(f"{where}: unknown {'key' if len(told) == 1 else 'keys'} {', '.join(told)}.")


def check_form(given: Mapping[str, Any], hints: Mapping[str, Any], where: str | Path) -> None:
    """Raises a ValueError for a value of a kind that its setting cannot take, such as a list where a number belongs.

    Texts pass where a setting is no list: what they say is checked when they are parsed, as those of a command line are. As a list, a text
    would be one of its letters.

    Args:
        given: values of a stage's file, by setting.
        hints: the type of each setting, as `typing.get_type_hints` has it.
        where: the file, for messages.
    """
    for key, value in given.items():
        if get_origin(hints[key]) is Literal and type(value) is not str:
            choices = get_args(hints[key])
            if value not in choices or type(value) not in map(type, choices):
                raise ValueError(f"{where}: `{key}` is {value!r}; it must be one of {', '.join(str(choice) for choice in choices)}.")
            continue
        kinds = [get_origin(kind) or kind for kind in get_args(hints[key]) or (hints[key],)]
        if get_origin(hints[key]) in (list, dict):
            kinds = [get_origin(hints[key])]
        is_list = list in kinds and str not in kinds
        if type(value) in kinds or isinstance(value, str) and not is_list or float in kinds and type(value) is int:
            continue
        wanted = " or ".join(_WORDS[kind] for kind in _WORDS if kind in kinds) or "text"
        hint = " (a YAML `no` or `off` means false: put it in quotes)" if value is False and str in kinds else ""
        hint = f", such as [{value!r}]" if isinstance(value, str) else hint
        raise ValueError(f"{where}: `{key}` is {value!r}; it must be {wanted}{hint}.")


_WORDS = {bool: "true or false", float: "a number", int: "a whole number", str: "text", list: "a list", dict: "a mapping"}


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Inside, no other run trains into the folder, which is made. A run that is killed holds it no more.

    Of the processes of one run the first speaks for all.

    Raises:
        OSError: another run trains into it, or it cannot be written to.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(f"Another run trains into {folder}: wait for its end, or give this one another --output_dir.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # where open files cannot be deleted, an empty one stays
            (folder / _LOCK).unlink()
        lock.release()
