"""Python packages that only some data sets take: imported where such a set is made."""

import importlib
from types import ModuleType

from datasets import DatasetError

INSTALL = "pip install -r datasets/requirements.txt"


def extra(module: str, package: "str | None" = None) -> ModuleType:
    """Imports a module of `package`, or says in one line how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = package or module
        raise DatasetError(f"the Python package {name} is missing: {INSTALL}") from error
