"""`python -m kasparro` is `kasparro`."""

from kasparro.cli import main

main()
