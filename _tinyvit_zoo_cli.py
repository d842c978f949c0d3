"""Where the console script `tinyvit-zoo` starts: outside the package, whose import registers models and costs seconds.

Help, the version, completion and usage errors need no model. So the package stands in `sys.modules` with its body not
yet run: its submodules can be imported, and the first name that is looked up in it runs the body.
"""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

PACKAGE = 'tinyvit_zoo'


def main() -> None:
    """Entry point of `tinyvit-zoo`."""
    defer_package()
    from tinyvit_zoo.cli import main as run

    run()


def defer_package() -> None:
    """Put the package into `sys.modules` without running its body; one that is imported already stays as it is."""
    if PACKAGE in sys.modules:
        return
    spec = find_spec(PACKAGE)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f'No module named {PACKAGE!r}', name=PACKAGE)
    module, loader = module_from_spec(spec), spec.loader

    def run_body(name: str) -> Any:
        del module.__dict__['__getattr__']  # the body looks up names of its own package
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__['__getattr__'] = run_body
    sys.modules[PACKAGE] = module


if __name__ == '__main__':
    main()
