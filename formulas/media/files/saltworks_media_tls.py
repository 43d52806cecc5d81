"""A boto3 client whose connections many threads may open at once.

botocore gives all connections of a client one SSL context, and urllib3 loads the authorities into
it once more with each of them, without Python's lock. OpenSSL 3.0 adds the reader of such files to
a list that it does not lock (``X509_STORE_add_lookup`` in ``crypto/x509/x509_lu.c``): two threads
that do so first leave a hole in it, and the process dies in ``X509_STORE_free`` at its end. Later
ones find the reader in the list. So the first comes before there are threads.
"""

from __future__ import annotations

from typing import Any

from botocore.httpsession import get_cert_path


def ready(client: Any) -> Any:
    """Load the authorities for the first time.

    :param client: of boto3, not in use yet.
    :returns: the client.
    """
    context(client).load_verify_locations(get_cert_path(client._endpoint.http_session._verify))
    return client


def context(client: Any) -> Any:
    """The SSL context of all of a client's connections; botocore gives no other way to it."""
    return client._endpoint.http_session._manager.connection_pool_kw["ssl_context"]
