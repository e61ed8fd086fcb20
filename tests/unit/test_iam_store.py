"""What IAM's store keeps in memory: when access keys were used, and what other daemons wrote."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from kmsd.iam.records import ACTIVE, AccessKey, Entity, KeyUse
from kmsd.iam.store import IamStore
from kmsd.store.schema import Table

from support.realmworld import World

KEY = AccessKey("AKIA" + "A" * 16, "1" * 12, "ann", "secret", ACTIVE, 0.0)


class Store:
    """Rows, and how often some were written."""

    def __init__(self, rows=()):
        self.rows, self.writes, self.fails = list(rows), [], False

    def scan(self, table):
        return self.rows if table is Table.ACCESS_KEY else []

    @contextmanager
    def transaction(self):
        yield self
        if self.fails:
            raise OSError("full")

    def put(self, table, key, row):
        assert table is Table.ACCESS_KEY and key == KEY.key_id
        self.writes.append(row)


def test_a_use_is_stored_once_an_hour():
    store = Store([KEY.row()])
    iam = IamStore(store)
    iam.write_uses()
    assert not store.writes and iam.last_use(KEY) == KeyUse()
    for second in range(11_000, 11_000 + 3 * 3600, 60):
        iam.note_use(KEY.key_id, KeyUse(float(second), "kms", "eu-west-1"))
        iam.write_uses()
        assert iam.last_use(iam.access_keys[KEY.key_id]).at == second
    assert [row["used_at"] for row in store.writes] == [11_000, 14_600, 18_200]
    # Another daemon over the same state knows it from the rows.
    assert IamStore(Store(store.writes[-1:])).last_use(AccessKey(**store.writes[-1])) == KeyUse(18_200.0, "kms", "eu-west-1")


def test_rows_of_before_and_keys_that_are_gone():
    old = {name: value for name, value in KEY.row().items() if not name.startswith("used")}
    store = Store([old])
    iam = IamStore(store)
    assert iam.last_use(iam.access_keys[KEY.key_id]) == KeyUse()
    iam.note_use(KEY.key_id, KeyUse(5000.0, "kms", "x"))
    iam.note_use("AKIA" + "B" * 16, KeyUse(5000.0, "kms", "x"))
    iam.write_uses()
    assert len(store.writes) == 1
    # What it is given later, its status for instance, does not take that away.
    assert replace(iam.access_keys[KEY.key_id], status="Inactive").used_at == 5000.0


def test_what_cannot_be_stored_stays_noted():
    store = Store([KEY.row()])
    iam = IamStore(store)
    iam.note_use(KEY.key_id, KeyUse(5000.0, "kms", "x"))
    store.fails = True
    try:
        iam.write_uses()
    except OSError:
        store.fails = False
    assert iam.access_keys[KEY.key_id].used_at == 0 and iam.last_use(KEY).at == 5000
    iam.write_uses()
    assert iam.access_keys[KEY.key_id].used_at == 5000


def test_the_daemon_stores_what_was_noted(tmp_path):
    """With what else it does once a minute; of temporary keys, which are nobody's row, nothing is kept."""
    world = World(tmp_path)
    key = replace(KEY, account=world.me.account)
    world.daemon._iam.put_key(key)
    for key_id in (key.key_id, "ASIA" + "A" * 16):
        world.daemon._book.note_use(key_id, KeyUse(world.now, "kms", "eu-west-1"))
    assert set(world.daemon._iam._used) == {key.key_id}
    world.daemon._purge()
    world.restart()
    assert world.daemon._iam.last_use(world.daemon._iam.access_keys[key.key_id]) == KeyUse(world.now, "kms", "eu-west-1")
    world.daemon._close()


@pytest.mark.parametrize("first", ["old", "new"])
@pytest.mark.parametrize("name", ["ann", "Ann", "eve"])
def test_another_name_that_another_daemon_gave(first, name):
    """In whatever order the two rows are told of."""
    user = Entity("user", "arn:kmsfs:iam::111111111111:user/ann", "1" * 12, "/", "ann", "AIDA" + "A" * 17, 0.0, 0.0)
    renamed = replace(user, arn=f"arn:kmsfs:iam::111111111111:user/team/{name}", path="/team/", name=name)
    iam = IamStore(Store())
    iam.take({Table.IDENTITY: {user.arn: user.row()}})
    rows = {user.arn: None, renamed.arn: renamed.row()}
    iam.take({Table.IDENTITY: rows if first == "old" else dict(reversed(rows.items()))})
    assert iam.of_arn(renamed.arn) == iam.get("1" * 12, "user", name) == iam.of_id(user.entity_id) == renamed
    assert iam.of_arn(user.arn) is None and (name == "eve") == (iam.get("1" * 12, "user", "ann") is None)
    iam.take({Table.IDENTITY: {renamed.arn: None}})
    assert iam.get("1" * 12, "user", name) is None is iam.of_id(user.entity_id)
