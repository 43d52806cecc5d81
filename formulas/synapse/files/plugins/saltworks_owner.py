"""Says whose a token is, in a header: nginx keeps a person's requests together by it.

Synapse's own tokens say it themselves. Those of an authentication service, of guests and of
servers before 2021 do not, and nginx cannot read it out of the body of ``/whoami``.
"""

from __future__ import annotations

from typing import Any

from synapse.http.site import SynapseRequest
from synapse.module_api import DirectServeJsonResource, ModuleApi
from unpaddedbase64 import encode_base64

PATH = "/_synapse/client/saltworks/owner"
HEADER = "X-Saltworks-Owner"


class OwnerResource(DirectServeJsonResource):
    """``GET``: the header names the token's owner as Synapse's own tokens do."""

    def __init__(self, api: ModuleApi) -> None:
        super().__init__()
        self._api = api

    async def _async_render_GET(self, request: SynapseRequest) -> tuple[int, dict[str, Any]]:
        requester = await self._api.get_user_by_req(request, allow_guest=True, allow_expired=True)
        request.setHeader(HEADER, encode_base64(requester.user.localpart.encode("utf-8")))
        return 200, {}


class Owner:
    """The module; it has no configuration."""

    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        api.register_web_resource(PATH, OwnerResource(api))

    @staticmethod
    def parse_config(config: dict[str, Any]) -> dict[str, Any]:
        return config
