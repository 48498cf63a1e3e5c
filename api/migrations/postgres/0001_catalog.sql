-- Apps, functions and triggers, and the feed of what changed. `document` is the resource as JSON; the other
-- columns are what queries and constraints need. Texts compare by their bytes, as in SQLite.
CREATE TABLE apps (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    document TEXT NOT NULL
);

CREATE TABLE fns (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id),
    name TEXT COLLATE "C" NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (app_id, name)
);

CREATE TABLE triggers (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id),
    fn_id TEXT COLLATE "C" NOT NULL REFERENCES fns (id),
    name TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    source TEXT COLLATE "C" NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (fn_id, name)
);

-- By a digest, since a source may be longer than an index takes (2,704 bytes).
CREATE UNIQUE INDEX triggers_by_source ON triggers (app_id, kind, md5(source));
CREATE INDEX triggers_by_name ON triggers (app_id, name, id);

CREATE TABLE changes (
    revision BIGINT NOT NULL PRIMARY KEY,
    kind TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL
);

-- One row: what tells this database from any other, and the feed's newest revision. Whoever changes the catalog
-- locks it first, so that revisions are committed in their order and none is left out.
CREATE TABLE feed (
    database_id TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL
);

INSERT INTO feed (database_id, revision) VALUES (replace(gen_random_uuid()::text, '-', ''), 0);
