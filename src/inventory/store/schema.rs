//! The schema of `state.db`, and how an older one becomes it.

/// The schema, one step for each version: step n leads from version n to n+1.
/// A step that has been released is never edited.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE machines (
        id        BLOB PRIMARY KEY,
        name      TEXT NOT NULL UNIQUE,
        mac       BLOB NOT NULL UNIQUE,
        uuid      BLOB,
        serial    TEXT,
        state     TEXT NOT NULL,
        image     TEXT,               -- with mode: the assignment
        version   INTEGER,            -- NULL: the current one
        mode      TEXT,
        address   TEXT UNIQUE,
        loader    TEXT,
        created   INTEGER NOT NULL,   -- all times: microseconds since 1970
        last_seen INTEGER
    ) STRICT;
    CREATE INDEX machines_uuid ON machines (uuid);
    CREATE INDEX machines_serial ON machines (serial);
    CREATE TABLE generations (
        machine         BLOB PRIMARY KEY REFERENCES machines (id) ON DELETE CASCADE,
        current         INTEGER NOT NULL,
        current_secret  TEXT,
        prepared        INTEGER,
        prepared_secret TEXT,
        prepared_at     INTEGER
    ) STRICT;
    CREATE TABLE overlays (
        uuid    BLOB PRIMARY KEY,
        machine BLOB NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
        image   TEXT NOT NULL,
        version INTEGER NOT NULL,
        mode    TEXT NOT NULL,
        created INTEGER NOT NULL,
        UNIQUE (machine, image)
    ) STRICT;
    CREATE TABLE leases (
        mac       BLOB PRIMARY KEY,
        address   TEXT NOT NULL,
        expires   INTEGER NOT NULL,
        uuid      BLOB,
        host_name TEXT
    ) STRICT;
    CREATE TABLE events (
        mac        BLOB NOT NULL,
        number     INTEGER NOT NULL,
        at         INTEGER NOT NULL,
        generation INTEGER,
        stage      TEXT NOT NULL,
        detail     TEXT NOT NULL,
        count      INTEGER NOT NULL,
        PRIMARY KEY (mac, number)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE targets (
        id            BLOB PRIMARY KEY,
        name          TEXT NOT NULL UNIQUE,
        iqn           TEXT NOT NULL UNIQUE,
        chap_name     TEXT,           -- with chap_secret
        chap_secret   TEXT,
        mutual_name   TEXT,           -- with mutual_secret
        mutual_secret TEXT,
        created       INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE units (
        id          BLOB PRIMARY KEY,
        target      BLOB NOT NULL REFERENCES targets (id) ON DELETE CASCADE,
        lun         INTEGER NOT NULL,
        file        BLOB NOT NULL,    -- a path need not be UTF-8
        kind        TEXT NOT NULL,
        shared      INTEGER NOT NULL,
        block_bytes INTEGER,
        created     INTEGER NOT NULL,
        UNIQUE (target, lun)
    ) STRICT;
",
    "
    CREATE TABLE disks (
        id      BLOB PRIMARY KEY,
        name    TEXT NOT NULL UNIQUE,
        file    BLOB NOT NULL UNIQUE, -- a name in DATA/disks, or a path from the root
        kind    TEXT NOT NULL,
        parent  BLOB REFERENCES disks (id),
        comment TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    ALTER TABLE machines ADD COLUMN disk BLOB REFERENCES disks (id); -- or image and mode
    CREATE UNIQUE INDEX machines_disk ON machines (disk);
    CREATE TABLE direct_boots (       -- of a machine's current generation, where it writes a disk
        machine      BLOB PRIMARY KEY REFERENCES machines (id) ON DELETE CASCADE,
        disk         BLOB NOT NULL UNIQUE REFERENCES disks (id) ON DELETE CASCADE,
        generation   INTEGER NOT NULL,
        unflushed_in BLOB             -- the kernel's boot_id; NULL: nothing is unflushed
    ) STRICT;
",
    "
    ALTER TABLE units ADD COLUMN format TEXT NOT NULL DEFAULT 'raw';
    ALTER TABLE units ADD COLUMN disk BLOB REFERENCES disks (id); -- whose file it is
",
    "
    CREATE TABLE former_overlays (    -- what machines wrote on before they went back
        uuid     BLOB PRIMARY KEY,
        machine  BLOB NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
        image    TEXT NOT NULL,
        version  INTEGER NOT NULL,
        mode     TEXT NOT NULL,
        created  INTEGER NOT NULL,
        replaced INTEGER NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE models (             -- of firmware, and what works with each
        number   INTEGER PRIMARY KEY,
        firmware TEXT NOT NULL,
        class    TEXT NOT NULL,
        maker    BLOB NOT NULL,       -- of the network card: half a MAC
        role     TEXT NOT NULL,
        style    TEXT,
        loader   TEXT,
        learned  INTEGER NOT NULL,
        UNIQUE (firmware, class, maker, role)
    ) STRICT;
",
];
