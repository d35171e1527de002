"""`python -m hnseg`."""

from hnseg.cli import main

if __name__ == "__main__":
    main()
