"""Real servers for tests, benchmarks and `make cluster-demo`: started here, on this machine, and thrown away.

Nothing of this ships. A server comes in a container where Docker answers and can get the image, else as a
native process from pinned, checksummed packages in a cache.
"""
