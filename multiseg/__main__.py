"""`python -m multiseg`, which `torchrun -m multiseg` needs."""

from multiseg.cli.app import main

if __name__ == "__main__":
    main()
