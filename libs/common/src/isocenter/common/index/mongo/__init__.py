"""The index of a cluster: a MongoDB replica set."""

from isocenter.common.index.mongo.index import MongoIndex

__all__ = ["MongoIndex"]
