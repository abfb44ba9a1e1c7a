"""What is wrong with a MongoDB URI, told without a word of it: it holds a password."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from pymongo.errors import PyMongoError

from isocenter.common.errors import Misconfigured
from isocenter.common.settings import MongoSettings

Client = TypeVar("Client")


def client_of(make: Callable[[], Client]) -> Client:
    """What `make` makes, a client of either driver.

    An option that the driver does not know or whose value it does not take is a fault, too: it would leave it
    out, TLS perhaps, and print a warning that quotes what follows a `?` in a password.

    Raises:
        Misconfigured: names the variable and the kind of the fault; whatever `make` itself raises of ours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return make()
    except UserWarning:
        cause = "an option is unknown or has a wrong value"
    except (PyMongoError, OSError, ValueError) as error:
        cause = type(error).__name__
    # Here, and not above: an error keeps the one during which it was raised, and that one quotes the URI.
    raise Misconfigured(f"{MongoSettings.variable('uri')} cannot be used", cause=cause)
