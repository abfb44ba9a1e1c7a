"""Keyed names: what may leave the index instead of a DICOM UID."""

from isocenter.common.keys.site import SiteKeys

__all__ = ["SiteKeys"]
