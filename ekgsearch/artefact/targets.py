"""Targets of factories: the names of networks of the zoo, torchvision and timm, and of anybody's own code."""

import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from ekgsearch.artefact.recipe import Constructor
from ekgsearch.errors import NetworkError
from ekgsearch.nets import zoo

LIBRARIES = ("torchvision", "timm")
"""Packages whose networks go by `package/name`."""

REFUSED_ARGUMENTS = frozenset(
    {"weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
    | {"cache_dir", "features_only"}
)
"""Arguments of the networks of these packages that fetch or open files, or make something that has no logits."""


def is_own(target: str) -> bool:
    """Whether a target names code outside the zoo and the libraries: ``package.module:callable`` or a file."""
    return ":" in target


def library_of(target: str) -> str:
    """The library that a target belongs to; empty for the zoo and for anybody's own code."""
    library, slash, _ = target.partition("/")
    return library if slash and library in LIBRARIES and not is_own(target) else ""


def names_of(library: str) -> Sequence[str]:
    """Names of the classification networks of a library.

    Raises:
        NetworkError: it is not installed.
    """
    package = _import(library, f"networks of {library} need the package {library}; install it (pip install {library})")
    if library == "torchvision":
        models = _import("torchvision.models", "torchvision without its models")
        return list(models.list_models(module=models))
    return list(package.list_models())


def check_target(target: str) -> None:
    """Check that there is such a network, without building it; own code is not looked at.

    Raises:
        NetworkError: there is none.
    """
    library, _, name = target.partition("/")
    if is_own(target):
        return
    if library_of(target):
        known = names_of(library)
        shown = f"the {len(known)} networks of {library}"
    else:
        name, known, shown = target, zoo.NAMES, ", ".join(zoo.NAMES)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        prefix = target.removesuffix(name)
        hint = f"; did you mean {prefix}{close[0]}?" if close else ""
        raise NetworkError(
            f"network must be one of {shown}, torchvision/NAME, timm/NAME (ekgsearch groups --list), or your own by "
            f"net.factory; found '{target}'{hint}"
        )


def find_known(target: str) -> Constructor:
    """Find a network of the libraries; own code is refused, so that a file from elsewhere runs none.

    Raises:
        NetworkError: there is no such network, or it is somebody's own.
    """
    if is_own(target):
        raise NetworkError(
            f"the network is made by {target}, code outside ekgsearch, torchvision and timm, which is not run unless "
            "you name it: factory=... in Python, --factory on the command line (or trust_factory=True, --trust-factory)"
        )
    return find_any(target)


def find_any(target: str) -> Constructor:
    """Find the class or function that a target names; code of others is imported.

    Raises:
        NetworkError: there is no such network, module, file, class or function.
    """
    check_target(target)
    library, _, name = target.partition("/")
    if is_own(target):
        return _own(target)
    if library == "torchvision":
        models = _import("torchvision.models", "torchvision without its models")
        return functools.partial(models.get_model, name, weights=None)
    timm = _import("timm", "networks of timm need the package timm; install it (pip install timm)")
    return functools.partial(timm.create_model, name, pretrained=False)


def finder(factory: Constructor | str | None, trust: bool) -> Callable[[str], Constructor]:
    """How the classes and functions of a file are found.

    Args:
        factory: what makes the unpruned network, where the caller names it; see `find_given`.
        trust: whether code that the file itself names may run.
    """
    if factory is not None:
        return find_given(factory)
    return find_any if trust else find_known


def find_given(factory: Constructor | str) -> Callable[[str], Constructor]:
    """A finder that takes one class or function in place of any own code that a recipe names.

    Args:
        factory: the class or function, or its target.
    """
    constructor = _own(factory) if isinstance(factory, str) and is_own(factory) else factory
    if not callable(constructor):
        raise NetworkError(
            f"factory = {factory!r}: expected a class or function, package.module:callable or path/file.py:callable"
        )

    def find(target: str) -> Constructor:
        return constructor if is_own(target) else find_any(target)

    return find


def target_of(factory: Constructor) -> str:
    """The target of a class or function: its module, or the file of a script, and its name."""
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    module = getattr(factory, "__module__", None) or "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if module in ("__main__", "__mp_main__") and file:
        return f"{Path(file).absolute()}:{name}"
    return f"{module}:{name}"


def source_of(target: str, constructor: Constructor) -> str:
    """Identity of the code behind a target: the version of its package, or the hash of its source.

    Args:
        target: what was named.
        constructor: the class or function.
    """
    if library := library_of(target):
        return f"{library} {importlib.metadata.version(library)}"
    try:
        file = inspect.getsourcefile(inspect.unwrap(constructor)) or ""
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, TypeError):  # of a notebook, or compiled: only its arguments and its state tell it apart
        return ""
    return f"sha256 {digest}"


def is_file_target(target: str) -> bool:
    """Whether a target names a file of Python."""
    return is_own(target) and target.rpartition(":")[0].endswith(".py")


def _own(target: str) -> Constructor:
    place, _, name = target.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise NetworkError(
            f"net.factory = {target}: expected package.module:callable or path/file.py:callable, such as "
            "nets/mine.py:MyNet"
        )
    module = _module_of_file(Path(place)) if is_file_target(target) else _module(place, target)
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise NetworkError(
            f"{target}: there is no class or function {name} in {place}; found {', '.join(callables[:8]) or 'none'}"
        )
    return found


def _module(name: str, target: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise NetworkError(f"net.factory = {target}: {name!r} is no name of a module")
    return _import(
        name,
        f"{target}: there is no module {name}; install the package that holds it, put its folder on PYTHONPATH, or "
        "name a file: path/file.py:callable",
    )


def _import(name: str, missing: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise NetworkError(missing) from error
        raise NetworkError(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        raise NetworkError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _module_of_file(path: Path) -> ModuleType:
    """The module in a file; imported once for each content, with its folder on the path for what it imports itself."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"net.factory: there is no file {path} that can be read: {error.strerror}") from error
    name = f"{path.stem}_{hashlib.sha256(str(path.absolute()).encode() + content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.absolute().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise NetworkError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module
