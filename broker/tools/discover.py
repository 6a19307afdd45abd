"""Where the command line finds events and services: in modules, imported by name, packages searched.

The current folder is on the path, as with ``python -m``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType

from broker.errors import ContractError, near_miss
from broker.service import Service


def import_module(name: str) -> ModuleType:
    """Import a module by name, the current folder included.

    Raises:
        ContractError: there is no such module, or it fails to import; the message says which and why.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ContractError(
                f"There is no module {name!r} on the path of {os.getcwd()}. "
                "Name another: --from MODULE, or BROKER_MODULES=one,two."
            ) from None
        raise ContractError(f"The module {name!r} does not import: {error}. Is the package installed?") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ContractError(f"The module {name!r} does not import: {type(error).__name__}: {error}") from error


def modules_in(names: Iterable[str]) -> list[ModuleType]:
    """The modules, and those within the packages among them; ``__main__`` is left alone. Raises as `import_module`."""
    found: dict[str, ModuleType] = {}
    for name in names:
        module = found.setdefault(name, import_module(name))
        for info in pkgutil.walk_packages(getattr(module, "__path__", ()), prefix=f"{name}."):
            if not info.name.endswith(".__main__"):
                found.setdefault(info.name, import_module(info.name))
    return list(found.values())


def services_of(modules: Iterable[ModuleType]) -> list[Service]:
    """The services that modules define, by name.

    Raises:
        ContractError: two services have one name.
    """
    found: dict[str, Service] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Service) and found.setdefault(value.name, value) is not value:
                raise ContractError(f"Two services are named {value.name!r}, one of them in {module.__name__}.")
    return [found[name] for name in sorted(found)]


def find_services(names: Iterable[str]) -> list[Service]:
    """The services in modules and packages. Raises as `import_module` and `services_of`."""
    return services_of(modules_in(names))


def locate_services(names: Iterable[str]) -> dict[str, str]:
    """Where each service is, as ``broker run`` takes it. Raises as `find_services`."""
    modules = modules_in(names)
    services_of(modules)
    found: dict[str, str] = {}
    for module in modules:
        held = {value.name for value in vars(module).values() if isinstance(value, Service)}
        for name in held:
            found.setdefault(name, module.__name__ if len(held) == 1 else f"{module.__name__}:{name}")
    return found


def load_service(target: str) -> Service:
    """The service at ``MODULE`` or ``MODULE:NAME``, where NAME is a variable's or the service's own.

    Raises:
        ContractError: the module does not import, or holds no such service, or several.
    """
    module_name, _, wanted = target.partition(":")
    module = import_module(module_name)
    if wanted and isinstance(service := vars(module).get(wanted), Service):
        return service
    services = {service.name: service for service in services_of([module])}
    if wanted:
        if wanted in services:
            return services[wanted]
        raise ContractError(f"The module {module_name!r} holds no service {wanted!r}.{near_miss(wanted, services)}")
    if len(services) == 1:
        return next(iter(services.values()))
    if not services:
        raise ContractError(f"The module {module_name!r} holds no service. Write there: service = Service('name').")
    raise ContractError(
        f"The module {module_name!r} holds {len(services)} services. Say {module_name}:{min(services)}."
    )
