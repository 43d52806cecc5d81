"""The alarm of formula sentinel on a real minion: what the master hears, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import salt.utils.event

from tests.process import house as houses
from tests.process.house import MINION, House

TAG = f"salt/beacon/{MINION}/redis_set/changed"
#: Two looks of the beacon, and what a busy machine takes.
HEARD_SECONDS = 60


@pytest.fixture(scope="module")
def house(salt_factories: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with houses.house(tmp_path_factory.mktemp("house"), salt_factories) as house:
        yield house


def changes(answer: Any) -> dict[str, Any]:
    assert isinstance(answer, dict), answer
    assert all(row["result"] for row in answer.values()), answer
    return {key: row["changes"] for key, row in answer.items() if row["changes"]}


def test_the_master_hears_of_trouble(house: House) -> None:
    house.ask("saltutil.sync_modules")
    config = house.master.config
    with salt.utils.event.get_event(
        "master", sock_dir=config["sock_dir"], opts=config, listen=True
    ) as bus:
        changes(house.ask("state.apply", "sentinel.alarm"))
        assert "redis_set" in house.ask("beacons.list", "return_yaml=False")
        assert changes(house.ask("state.apply", "sentinel.alarm")) == {}
        # Salt counts a beacon's interval in loops of a second, as if they were of loop_interval,
        # which is a twentieth of that in tests: two seconds.
        house.ask("beacons.modify", "redis_set", '[{"interval": 0.1}]')
        heard = bus.get_event(wait=HEARD_SECONDS, tag=TAG, match_type="startswith")
    assert heard, "no event"
    # There is no Sentinel here.
    assert heard["master"] == ""
    assert "apply the state sentinel" in heard["wrong"][0]


def test_no_alarm_is_left(house: House) -> None:
    house.ask("saltutil.sync_modules")
    changes(house.ask("state.apply", "sentinel.alarm"))
    assert "redis_set" in house.ask("beacons.list", "return_yaml=False")
    # That alone: the rest of the SLS is about this host's own Redis.
    changes(house.ask("state.sls_id", "sentinel-absent-alarm", "sentinel.absent"))
    assert "redis_set" not in house.ask("beacons.list", "return_yaml=False")
