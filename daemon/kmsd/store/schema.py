"""The tables, and what each sealed row holds: this page of comments is the reference.

`row` holds everything; `head` has one row. No name, id or value is in the clear:

* `tbl`     Table number below.
* `id`      HMAC-SHA256(K_index, tbl u8 ‖ natural key)[:16]. The natural key is in the sealed body too.
* `parent`  HMAC-SHA256(K_index, tbl u8 ‖ 0x00 ‖ parent's natural key)[:16], or 16 zero bytes; lets versions of
            one parameter be read by an index walk without storing its name.
* `ver`     Counts the writes of this row from 1; in the associated data, so an older copy of a row does not open
            under a newer version, and in the accumulator, so an older row with its own version is noticed.
* `blob`    0x01 ‖ domain key id u32 LE ‖ nonce 12 ‖ AES-256-GCM ciphertext ‖ tag. AAD = "kmsfs/row" ‖ tbl ‖ id ‖
            parent ‖ ver u64 LE.

`head.blob` is sealed the same way with tbl 0 and id, parent zero: {"commit": transactions so far, "acc": XOR over
all rows of HMAC-SHA256(K_accumulator, tbl ‖ id ‖ ver ‖ tag), "seals": seals under the newest domain key}.
"""

from enum import IntEnum

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, LargeBinary, MetaData, Text
from sqlalchemy import Table as SqlTable

SCHEMA_VERSION = 1
"""In PRAGMA user_version, or in `kmsfs_format`. Another number is refused."""


class Table(IntEnum):
    """What a row is."""

    HEAD = 0
    KEY = 1
    """Natural key: key id. {id, description, state, created, deletion, policy, term, generation, creator}
    and, since there are key specs, {spec, usage, tags, rotation_days, next_rotation, rotations}."""
    MATERIAL = 2
    """Natural key: `key id/term`. {key, term, created, material_id, blob}: blob of type 2, AAD context empty."""
    ALIAS = 3
    """Natural key: alias with prefix. {name, key, created, updated}."""
    GRANT = 4
    """Natural key: `key id/grant id`. {id, key, grantee, retiring, operations, equals, subset, name, created, issuer}."""
    PARAMETER = 5
    """Natural key: full name. {name, type, tier, version, owner, key, description, pattern, data_type, modified, user}."""
    PARAMETER_VERSION = 6
    """Natural key: `name:version`, parent: name. The parameter's fields plus {value: bytes}; SecureString: ciphertext."""
    VOLUME = 7
    """Natural key: volume id hex, behind `ACCOUNT/` where it is not the managing account's. {id, account, key, session: highest handed out, unclean: [sessions]}."""

    SECRET = 8
    """Natural key: secret ARN. The fields of kmsd.secrets.records.Secret."""
    SECRET_VERSION = 9
    """Natural key: `secret ARN:version id`, parent: secret ARN. {arn, id, created, key_arn, binary, value: Encryption SDK message}."""
    IDENTITY = 10
    """Natural key: ARN. The fields of kmsd.iam.records.Entity: users, groups, roles and managed policies."""
    ACCESS_KEY = 11
    """Natural key: access key id. {id, account, user, secret, status, created}; user None: the account root."""
    KEY_USAGE = 12
    """Natural key: key id. {key, operation, at, call}; and one named `tracking`: {since}."""
    MFA_DEVICE = 13
    """Natural key: ARN. The fields of kmsd.iam.records.MfaDevice."""
    ACCOUNT = 14
    """Natural key: account id. The fields of kmsd.accounts.store.Account; the managing account has no row."""
    KEY_STORE = 15
    """Natural key: custom key store id. The fields of kmsd.keystores.store.KeyStore."""
    CHANGE = 16
    """Of shared databases, in a table of its own: see `CHANGE`."""


METADATA = MetaData()
ROW = SqlTable(
    "row",
    METADATA,
    Column("tbl", Integer, primary_key=True, autoincrement=False),
    Column("id", LargeBinary(16), primary_key=True),
    Column("parent", LargeBinary(16), nullable=False),
    Column("ver", Integer, nullable=False),
    Column("blob", LargeBinary, nullable=False),
    Index("row_parent", "tbl", "parent"),
    sqlite_with_rowid=False,
)
HEAD = SqlTable(
    "head",
    METADATA,
    Column("only", Integer, primary_key=True, autoincrement=False),
    Column("blob", LargeBinary, nullable=False),
)
SHARED = MetaData()
"""What a database that several daemons share has besides."""
CHANGE = SqlTable(
    "change",
    SHARED,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("blob", LargeBinary, nullable=False),
)
"""One row a transaction, for the other daemons: `seq` is its commit number, `blob` sealed as rows are, with tbl 16, id the commit
number (16 bytes, big endian), parent zero and ver 0: {"before", "after": the accumulator, "rows": [[tbl, natural key, ver, tag], ...]},
where ver 0 says that the row is gone. The last 100,000 are kept."""
HOST = SqlTable(
    "host",
    SHARED,
    Column("id", Text, primary_key=True),
    Column("seen", DateTime(timezone=True), nullable=False),
)
"""When each daemon was last heard of, by the database's clock. Not sealed: it decides who waits, never what is so."""
FORMAT = SqlTable(
    "kmsfs_format",
    SHARED,
    Column("only", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("realm", LargeBinary(16), nullable=False),
)
"""SCHEMA_VERSION, and whose database it is."""
