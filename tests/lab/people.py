"""The people of the hand-made legacy server, and the secrets its keeper wrote into its files.

Everything here is made up for the lab; nothing of it is used anywhere else.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Literal

SERVER_NAME = "lale.test"
PUBLIC_URL = "https://chat.lale.test"

REGISTRATION_SHARED_SECRET = "Qo5#x^uH:6@Kb1lale-registration-2021"
MACAROON_SECRET_KEY = "~wAW,7_r+mS8lale-macaroon-2021;0Z"
FORM_SECRET = "p9Tz*M.lale-form-2021=iK&3w"
PEPPER = "lale-pfeffer-2021-Bv8"
DATABASE_PASSWORD = "tulpen-zwiebel-1987"
LDAP_ADMIN_PASSWORD = "gartenzaun-2021"
LDAP_BASE = "dc=lale,dc=test"


@dataclass(frozen=True)
class Person:
    """Somebody with an account. `devices` are logged in while seeding, the first one chats."""

    localpart: str
    name: str
    surname: str
    kind: Literal["local", "ldap"]
    password: str
    display: str
    devices: tuple[str, ...] = ("PHONE",)
    admin: bool = False
    avatar: bool = False

    @property
    def user_id(self) -> str:
        return f"@{self.localpart}:{SERVER_NAME}"


PEOPLE = (
    Person(
        "anna",
        "Änne",
        "Öztürk",
        "local",
        "anna-klatschmohn-1",
        "Änne Öztürk 🌷",
        ("PHONE", "LAPTOP"),
        admin=True,
        avatar=True,
    ),
    Person(
        "bruno",
        "Bruno",
        "Müller",
        "local",
        "bruno-löwenzahn-2",
        "Bruno Müller",
        ("PHONE", "LAPTOP", "TABLET"),
        avatar=True,
    ),
    Person("clara", "Clara", "Größe", "local", "clara-schlüsselblume-3", "Clara Größe"),
    Person("dario", "Darío", "Ñandú", "local", "dario-malva-4", "Darío Ñandú"),
    Person("emil", "Emil", "Weg", "local", "emil-distel-5", "Emil (zieht fort)"),
    Person(
        "fiona",
        "Fíona",
        "Ní Bhriain",
        "ldap",
        "fiona-fuchsia-6",
        "Fíona Ní Bhriain",
        ("PHONE", "LAPTOP"),
        avatar=True,
    ),
    Person("goran", "Göran", "Ångström", "ldap", "goran-blåklocka-7", "Göran Ångström"),
    Person("hanna", "Hanna", "Çelik", "ldap", "hanna-lale-8", "Hanna Çelik"),
    # In the directory, never logged in before a verify does it.
    Person("ines", "Inês", "Araújo", "ldap", "ines-cravo-9", "Inês Araújo"),
)
BY_NAME = {person.localpart: person for person in PEOPLE}
DEACTIVATED = "emil"
RESERVED_FOR_VERIFY = "ines"
SEEDED = tuple(person for person in PEOPLE if person.localpart != RESERVED_FOR_VERIFY)
# Two of each kind, each with one more device that nothing of the seed uses.
WITNESSES = ("bruno", "clara", "fiona", "goran")
WITNESS_DEVICE = "WITNESS"


def ldif() -> str:
    """The directory's people, as `ldapadd` reads them (the base entry comes with the package)."""
    entries = [f"dn: ou=people,{LDAP_BASE}\nobjectClass: organizationalUnit\nou: people\n"]
    for person in PEOPLE:
        if person.kind != "ldap":
            continue
        entries.append(
            "\n".join(
                (
                    f"dn: uid={person.localpart},ou=people,{LDAP_BASE}",
                    "objectClass: inetOrgPerson",
                    f"uid: {person.localpart}",
                    _attribute("cn", f"{person.name} {person.surname}"),
                    _attribute("sn", person.surname),
                    _attribute("givenName", person.name),
                    f"mail: {person.localpart}@lale.test",
                    _attribute("userPassword", person.password),
                    "",
                )
            )
        )
    return "\n".join(entries)


def _attribute(name: str, value: str) -> str:
    # RFC 2849: a value that is not plain ASCII is written in base64, after two colons.
    if value.isascii():
        return f"{name}: {value}"
    return f"{name}:: {b64encode(value.encode()).decode()}"
