"""matrix-synapse-ldap3's module with bounds: a directory that is away is said, and soon.

As it comes that module waits for ever for a server that does not answer, in one of the few
threads that all logins share, and calls a directory that is away a wrong password.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ldap3
import ldap3.core.exceptions
from ldap_auth_provider import LdapAuthProviderModule
from synapse.module_api import make_deferred_yieldable, run_in_background
from synapse.module_api.errors import Codes, SynapseError
from twisted.internet import defer, reactor, threads

logger = logging.getLogger(__name__)

#: Bounds in seconds: of connecting, of each answer, and of a login's questions together.
CONNECT_SECONDS, ANSWER_SECONDS, LOGIN_SECONDS = 2, 2, 4

AWAY = (
    "The server that knows the passwords does not answer. Your password may be right: "
    "please try again in a few minutes."
)


class DirectoryAway(SynapseError, defer.CancelledError):
    """What the client is told.

    Synapse takes any other exception of a password provider for a wrong password; a
    cancelled question it passes on, and answers with this code and text.
    """

    def __init__(self) -> None:
        super().__init__(503, AWAY, Codes.UNKNOWN)


class LdapModule(LdapAuthProviderModule):
    """See the module's own documentation for the configuration; one ``uri``, and no more."""

    @staticmethod
    def parse_config(config: dict[str, Any]) -> Any:
        if not isinstance(config.get("uri"), str):
            raise ValueError("uri must be one address, such as ldaps://directory:636")
        return LdapAuthProviderModule.parse_config(config)

    def _get_server(self, get_info: str | None = None) -> ldap3.Server:
        # Not a pool: one that checks its servers loops until one of them is there.
        return ldap3.Server(
            self.ldap_uris[0],
            get_info=get_info,
            tls=self.ldap_tls,
            connect_timeout=CONNECT_SECONDS,
        )

    async def _ldap_simple_bind(
        self,
        server: ldap3.Server,
        bind_dn: str | None = None,
        password: str | None = None,
        auth_type: str = ldap3.SIMPLE,
    ) -> tuple[bool, ldap3.Connection | None]:
        connection = ldap3.Connection(
            server,
            bind_dn,
            password,
            authentication=auth_type,
            read_only=True,
            receive_timeout=ANSWER_SECONDS,
        )
        try:
            if self.ldap_start_tls:
                await threads.deferToThread(connection.open)
                await threads.deferToThread(connection.start_tls)
            if await threads.deferToThread(connection.bind):
                return True, connection
            logger.info("%s refuses %s: %s", server.name, bind_dn, connection.result["description"])
            await threads.deferToThread(connection.unbind)
        except ldap3.core.exceptions.LDAPException as error:
            logger.warning("%s cannot be asked: %s", server.name, error)
            raise DirectoryAway from error
        return False, None

    async def _ldap_authenticated_search(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._ldap_authenticated_search(*args, **kwargs)
        except ldap3.core.exceptions.LDAPException as error:
            logger.warning("the directory cannot be searched: %s", error)
            raise DirectoryAway from error

    async def wrapped_check_auth(
        self, username: str, login_type: str, login_dict: dict[str, Any]
    ) -> tuple[str, None] | None:
        try:
            return await _bounded(super().wrapped_check_auth, username, login_type, login_dict)
        except DirectoryAway:
            if await self._has_password_here(username):
                return None
            raise

    async def wrapped_check_3pid_auth(
        self, medium: str, address: str, password: str
    ) -> tuple[str, None] | None:
        return await _bounded(super().wrapped_check_3pid_auth, medium, address, password)

    async def _has_password_here(self, username: str) -> bool:
        """Whether Synapse itself knows a password of an account, which it goes on to check."""
        user_id = self.account_handler.get_qualified_user_id(username)
        rows = await self.account_handler.run_db_interaction(
            "saltworks_ldap_has_password",
            lambda txn: txn.execute(
                "SELECT 1 FROM users WHERE lower(name) = lower(?) AND password_hash IS NOT NULL "
                "AND password_hash <> ''",
                (user_id,),
            )
            or txn.fetchall(),
        )
        return bool(rows)


async def _bounded(ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    asked = run_in_background(ask, *args)
    asked.addTimeout(LOGIN_SECONDS, reactor)
    try:
        return await make_deferred_yieldable(asked)
    except defer.TimeoutError:
        logger.warning("the directory did not answer within %s s", LOGIN_SECONDS)
        raise DirectoryAway from None
