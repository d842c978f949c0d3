"""`python -m tinyvit_zoo.hub build` renders hub_configs/ anew; `check` fails if that would change anything."""

import argparse
import sys

from .configs import build_configs, configs_folder, drifted_configs


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m tinyvit_zoo.hub', description=__doc__)
    parser.add_argument('action', choices=('build', 'check'))
    if parser.parse_args().action == 'build':
        print(f'{len(build_configs())} pages written to {configs_folder()}')
        return
    drifted = drifted_configs()
    if drifted:
        sys.exit(f'Not as the releases say: {", ".join(drifted)}. Run `python -m tinyvit_zoo.hub build`.')


if __name__ == '__main__':
    main()
