"""What assets and sensors reach outside for, as Dagster resources: thin, at the addresses of the settings.

They import their clients when first used, so a code location loads with nothing installed beside Dagster and nothing
running.
"""

from resources.blobs import BlobResource
from resources.registry import RegistryResource
from resources.store import Later, StoreResource

__all__ = ["BlobResource", "Later", "RegistryResource", "StoreResource"]
