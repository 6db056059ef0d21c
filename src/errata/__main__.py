"""`python -m errata` is `errata`; `torchrun -m errata stats …` starts it in several processes."""

from errata.cli.main import main

if __name__ == "__main__":
    main()
