"""``python -m tersor.cli``: the command line without its script."""

from tersor.cli import main

if __name__ == "__main__":
    main()
