"""`python -m tinyvit_zoo.cli`, and `torchrun -m tinyvit_zoo.cli run SCRIPT` for several processes."""

from . import main

if __name__ == '__main__':
    main()
