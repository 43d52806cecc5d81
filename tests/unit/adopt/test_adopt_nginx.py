"""The reader of nginx configurations."""

from __future__ import annotations

import pytest
from saltworks import adopt
from saltworks.adopt.nginx import Broken, parse

from tests.unit.adopt import adopt_cases


def test_words_quotes_comments_and_lines() -> None:
    tree = parse(
        "# first\nserver {\n  return 200 '{\"a\": \"b;c}\"}'; # {\n"
        '  add_header X "a \\"b\\" ;";\n  listen 443\n    ssl;\n}\n',
        "f",
    )
    [server] = tree
    assert server.block is not None
    back, header, listen = server.block
    assert (back.name, back.args, back.line) == ("return", ["200", '{"a": "b;c}"}'], 3)
    assert header.args == ["X", 'a "b" ;']
    assert (listen.args, listen.place) == (["443", "ssl"], "f:5")


def test_variables_in_braces_and_regular_expressions_are_words() -> None:
    [location] = parse("location ~ ^/a(/|$) { set $x ${y}z; }", "f")
    assert location.args == ["~", "^/a(/|$)"]
    assert location.block is not None
    assert location.block[0].args == ["$x", "${y}z"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server {", "f:1: the file ends inside"),
        ("server {\n}\n}", "f:3: '}' is not expected"),
        ("\n{ }", "f:2: '{' is not expected"),
        ("listen 80", "f:1: the file ends inside"),
        ("a 'b;\n", "f:1: a quote is not closed"),
        ("server { listen }", "f:1: '}' is not expected"),
    ],
)
def test_what_is_broken_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(Broken, match=says.replace("{", r"\{").replace("}", r"\}")):
        parse(text, "f")


def test_empty_statements_and_files() -> None:
    assert parse("", "f") == []
    assert parse(";;\n# only a comment", "f") == []


def test_a_server_elsewhere_on_the_same_port_number_is_not_synapse() -> None:
    found = adopt_cases.found(adopt_cases.load("sqlite"))
    found["nginx"] = {
        "/etc/nginx/sites-enabled/matrix": found["nginx"][
            "/etc/nginx/sites-enabled/matrix"
        ].replace("http://127.0.0.1:8008", "http://192.0.2.9:8008")
    }
    outcome = adopt.judge(found)
    assert any("no server block passes" in row.what for row in outcome.problems)


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("/_matrix", "kept"),
        ("/_matrix/", "kept"),
        ("^~ /_matrix/client", "kept"),
        ("~ ^(/_matrix|/_synapse/client)", "kept"),
        ("~* ^(\\/_matrix|\\/_synapse\\/client)", "kept"),
        ("~ ^/(_matrix|_synapse/client)/", "kept"),
        ("/", "replaced"),
        ("/_synapse", "cannot-carry"),
        ("/_synapse/admin", "cannot-carry"),
        ("~ ^/_synapse/(client|admin)", "cannot-carry"),
        ("/health", "cannot-carry"),
    ],
)
def test_what_is_passed_to_synapse_has_a_verdict(location: str, kind: str) -> None:
    found = adopt_cases.found(adopt_cases.load("sqlite"))
    path = "/etc/nginx/sites-enabled/matrix"
    found["nginx"][path] = found["nginx"][path].replace(
        "~ ^(/_matrix|/_synapse/client)", location
    )
    row = adopt.judge(found).verdict_of(f"nginx {path}:8 location {location}")
    assert row is not None
    assert row.verdict == kind


def test_the_other_sites_stay() -> None:
    outcome = adopt.judge(adopt_cases.found(adopt_cases.load("sqlite")))
    assert outcome.cluster_map["legacy"]["nginx_sites"] == ["/etc/nginx/sites-enabled/matrix"]
    assert not [row for row in outcome.verdicts if "www" in row.key]


def test_an_include_that_includes_itself_ends() -> None:
    found = adopt_cases.found(adopt_cases.load("sqlite"))
    found["nginx"]["/etc/nginx/snippets/a.conf"] = "include /etc/nginx/snippets/a.conf;\n"
    site = found["nginx"]["/etc/nginx/sites-enabled/matrix"]
    found["nginx"]["/etc/nginx/sites-enabled/matrix"] = site.replace(
        "server {", "server {\n include snippets/a.conf;"
    )
    assert adopt.judge(found).problems == []
