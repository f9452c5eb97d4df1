"""`python -m stepdown`: the same as the `stepdown` command."""

from stepdown.cli import main

if __name__ == "__main__":
    main()
