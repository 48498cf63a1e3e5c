-- Apps, functions and triggers, and the feed of what changed. `document` is the resource as JSON; the other
-- columns are what queries and constraints need.
CREATE TABLE apps (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    name VARCHAR(255) NOT NULL UNIQUE,
    document TEXT NOT NULL
);

CREATE TABLE fns (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    app_id VARCHAR(26) NOT NULL REFERENCES apps (id),
    name VARCHAR(255) NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (app_id, name)
);

CREATE TABLE triggers (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    app_id VARCHAR(26) NOT NULL REFERENCES apps (id),
    fn_id VARCHAR(26) NOT NULL REFERENCES fns (id),
    name VARCHAR(255) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    source TEXT NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (app_id, kind, source),
    UNIQUE (fn_id, name)
);

CREATE INDEX triggers_by_name ON triggers (app_id, name, id);

-- AUTOINCREMENT, so that a revision is never given twice, also after old rows were removed.
CREATE TABLE changes (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    kind VARCHAR(16) NOT NULL,
    id VARCHAR(26) NOT NULL
);
