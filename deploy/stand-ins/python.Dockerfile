# python:3.13-slim-trixie from Debian 13's own CPython 3.13.
FROM debian:trixie-slim
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3.13 python3.13-venv \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/bin/python3.13 /usr/local/bin/python3.13 \
    && ln -s python3.13 /usr/local/bin/python3 \
    && ln -s python3.13 /usr/local/bin/python
CMD ["python3"]
