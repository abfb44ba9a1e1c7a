"""Moves a whole site from one set of engines to another: `isocenter migrate`.

Written on the ports, so that it knows neither directories nor clusters. It keeps no journal: what has been
moved is what lies in the target and equals the source, so an interrupted run goes on wherever it ended, and
a finished one that is started again finds nothing to do.
"""
