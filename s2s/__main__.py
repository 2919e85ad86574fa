"""`python -m s2s` is `s2s`: for launchers that start modules."""

from s2s.cli import main

if __name__ == "__main__":
    main()
