"""`healthcheck.py VARIABLE`: asks `/readyz` on the port that the environment variable names.

For `HEALTHCHECK`: the image has no curl. Prints the answer, which `docker inspect` shows; 0 means ready.
"""

import http.client
import os
import sys

SECONDS = 4.0
MOST_BYTES = 4096


def main(variable: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ[variable]), timeout=SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read(MOST_BYTES).decode("utf-8", "replace"))  # noqa: T201 - Docker keeps it
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {type(error).__name__}")  # noqa: T201
        return 1
    finally:
        connection.close()
    return 0 if answer.status == http.HTTPStatus.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
