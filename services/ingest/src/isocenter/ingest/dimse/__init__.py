"""C-STORE and C-ECHO over the DICOM upper layer (PS3.7, PS3.8), on asyncio, without decoding a data set."""
