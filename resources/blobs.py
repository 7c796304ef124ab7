"""Blobs and the key that signs what names them, both under the state directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from primespark.core.paths import home

if TYPE_CHECKING:
    from primespark.core.manifests import SigningKey
    from primespark.store.blobs import BlobStore


class BlobResource(dg.ConfigurableResource["BlobResource"]):
    """Immutable bytes by SHA-256."""

    def store(self) -> BlobStore:
        """The blobs devices pull from."""
        from primespark.store.blobs import BlobStore

        return BlobStore(home() / "blobs")

    def signing_key(self) -> SigningKey:
        """The key whose signature on a manifest devices trust since they enrolled."""
        from primespark.core.manifests import SigningKey

        return SigningKey.load_or_create(home() / "cloud" / "signing.key")
