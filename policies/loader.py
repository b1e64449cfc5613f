"""Policies by name: the presets that come with Rookery, and YAML files of one directory."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from policies.errors import PolicyError
from policies.layer import Layer
from policies.policy import Policy

PRESETS: Final = ("locked-down", "read-only", "workspace", "developer", "trusted")
"""Names of the policies that come with Rookery, from the narrowest to the widest."""

MAX_FILE: Final = 2_000_000
"""Bytes read of a policy file; what is longer is refused by its length in characters, which is far below."""

_PRESET_DIRECTORY: Final = Path(__file__).parent / "presets"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SUFFIXES: Final = (".yaml", ".yml")


def load_policy(name: str, directory: Path | None = None) -> Policy:
    """The policy of a name: a preset, or the file ``name.yaml`` of a directory.

    Args:
        name: the preset's name, or the file's without its suffix.
        directory: where the user's own policies lie, if anywhere.

    Raises:
        PolicyError: there is none of that name (the error lists those that there are), it cannot be read, or it is
            faulty (with file, line and remedy).
    """
    known = policy_names(directory)
    if name not in known:
        raise PolicyError(f"there is no policy named {name[:80]!r}", remedy=f"known policies: {', '.join(known)}")
    if name in PRESETS:
        _refuse_shadow(name, directory)
        return preset(name)
    assert directory is not None
    path = next(path for suffix in _SUFFIXES if (path := directory / f"{name}{suffix}").is_file())
    return parse_policy(_read(path), name=name, file=path.name)


def policy_names(directory: Path | None = None) -> tuple[str, ...]:
    """Every name that :func:`load_policy` knows: presets first, then files in alphabetical order."""
    found: set[str] = set()
    if directory is not None:
        try:
            found = {path.stem for path in directory.iterdir() if path.suffix in _SUFFIXES and path.is_file()}
        except OSError:
            raise PolicyError(
                "the directory of policies cannot be read", remedy="check that it exists and may be read"
            ) from None
    own = sorted(name for name in found if _NAME.fullmatch(name) and name not in PRESETS)
    return (*PRESETS, *own)


def _refuse_shadow(name: str, directory: Path | None) -> None:
    """A file with a preset's name would be ignored silently: it is refused instead."""
    for suffix in _SUFFIXES if directory is not None else ():
        if directory is not None and (directory / f"{name}{suffix}").exists():
            raise PolicyError(
                f"{name} is the name of a preset", file=f"{name}{suffix}", remedy="give the file another name"
            )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE)
        return data.decode("utf-8-sig")
    except OSError:
        raise PolicyError("the file cannot be read", file=path.name, remedy="check its permissions") from None
    except UnicodeDecodeError:
        raise PolicyError("the file is not UTF-8 text", file=path.name, remedy="save it as UTF-8") from None


@lru_cache(maxsize=16)
def preset(name: str) -> Policy:
    """A preset by its name, which must be one of :data:`PRESETS`."""
    return parse_policy(_read(_PRESET_DIRECTORY / f"{name}.yaml"), name=name, file=name)


def parse_policy(text: str, *, name: str, file: str | None = None) -> Policy:
    """Compile a policy's text: one layer, named ``profile``.

    Args:
        text: YAML.
        name: what to call the policy.
        file: what to call its file in errors; by default the name with ``.yaml``.

    Raises:
        PolicyError: it is faulty, its examples do not hold, or it holds rules that can never decide anything.
    """
    # Imported here: YAML, pydantic's models and the checks take longer to load than all the rest of this room.
    from policies.compiler import Compiler
    from policies.lint import check_layer
    from policies.source import read_policy_text

    file = file if file is not None else f"{name}.yaml"
    document, lines = read_policy_text(text, file)
    base: Layer | None = None
    if document.extends is not None:
        if document.extends not in PRESETS or document.extends == name:
            raise PolicyError(
                f"there is no preset named {document.extends!r} to extend",
                file=file,
                line=lines.of(("extends",)),
                remedy=f"presets: {', '.join(PRESETS)}",
            )
        base = preset(document.extends).layers[0]
    layer = Compiler(document, lines, file, base).compile(name)
    check_layer(layer, file)
    return Policy(name, (layer,))
