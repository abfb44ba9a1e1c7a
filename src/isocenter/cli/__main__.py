"""`python -m isocenter.cli`."""

from isocenter.cli.main import app

app()
