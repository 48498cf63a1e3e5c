-- Apps, functions and triggers, the feed of what changed, ended calls and their logs, and what balancers tell each other.
-- Every statement can run again: a change of the schema is no transaction here, and one that was cut off is repeated.
-- Texts compare by their bytes, trailing blanks included: MariaDB and MySQL name that collation differently, and each
-- takes the other's for a comment. `document` is the resource as JSON; the other columns are what queries and
-- constraints need.
CREATE TABLE IF NOT EXISTS apps (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    document MEDIUMTEXT NOT NULL,
    UNIQUE KEY apps_by_name (name)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

CREATE TABLE IF NOT EXISTS fns (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    app_id VARCHAR(26) NOT NULL,
    name VARCHAR(255) NOT NULL,
    document MEDIUMTEXT NOT NULL,
    UNIQUE KEY fns_by_name (app_id, name),
    CONSTRAINT fns_of_app FOREIGN KEY (app_id) REFERENCES apps (id)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

CREATE TABLE IF NOT EXISTS triggers (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    app_id VARCHAR(26) NOT NULL,
    fn_id VARCHAR(26) NOT NULL,
    name VARCHAR(255) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    source MEDIUMTEXT NOT NULL,
    -- A source may be longer than an index takes.
    source_digest CHAR(64) CHARACTER SET ascii COLLATE ascii_bin GENERATED ALWAYS AS (SHA2(source, 256)) STORED,
    document MEDIUMTEXT NOT NULL,
    UNIQUE KEY triggers_by_source (app_id, kind, source_digest),
    UNIQUE KEY triggers_by_fn (fn_id, name),
    KEY triggers_by_name (app_id, name, id),
    KEY triggers_by_path (app_id, kind, source(255)),
    CONSTRAINT triggers_of_app FOREIGN KEY (app_id) REFERENCES apps (id),
    CONSTRAINT triggers_of_fn FOREIGN KEY (fn_id) REFERENCES fns (id)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

CREATE TABLE IF NOT EXISTS changes (
    revision BIGINT NOT NULL PRIMARY KEY,
    kind VARCHAR(16) NOT NULL,
    id VARCHAR(26) NOT NULL
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

-- One row: what tells this database from any other, and the feed's newest revision. Whoever changes the catalog
-- locks it first, so that revisions are committed in their order and none is left out.
CREATE TABLE IF NOT EXISTS feed (
    only TINYINT NOT NULL PRIMARY KEY,
    database_id VARCHAR(32) NOT NULL,
    revision BIGINT NOT NULL
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

INSERT IGNORE INTO feed (only, database_id, revision) VALUES (1, MD5(CONCAT(UUID(), RAND())), 0);

-- Rows to lock: `records` for who removes old ones.
CREATE TABLE IF NOT EXISTS locks (
    name VARCHAR(16) NOT NULL PRIMARY KEY
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

INSERT IGNORE INTO locks (name) VALUES ('records');

-- Ended calls and their logs. Call ids sort by time, which makes inserts cheap and retention a range.
-- `status` is 0 success, 1 error, 2 timeout; `story` is JSON of `kiln_shared::story::Story`.
CREATE TABLE IF NOT EXISTS calls (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    fn_id VARCHAR(26) NOT NULL,
    trigger_id VARCHAR(26),
    status INTEGER NOT NULL,
    error MEDIUMTEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT NOT NULL,
    cold INTEGER NOT NULL,
    story MEDIUMTEXT,
    KEY calls_by_fn (fn_id, id)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

-- Pieces of a call's log in the order of `part`. `bytes` is the length of `text`.
CREATE TABLE IF NOT EXISTS logs (
    call_id VARCHAR(26) NOT NULL,
    part BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    text LONGTEXT NOT NULL,
    PRIMARY KEY (call_id, part)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

-- Join tokens that let in a node, and who used them. Kept until long after they expire: each lets in one node.
CREATE TABLE IF NOT EXISTS join_tokens (
    id VARCHAR(255) NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    used_by TEXT
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

-- Where agents reach the balancers' links.
CREATE TABLE IF NOT EXISTS balancers (
    name VARCHAR(255) NOT NULL PRIMARY KEY,
    link_address TEXT NOT NULL,
    seen_at BIGINT NOT NULL
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

-- Nodes that may not come back under this name, whatever certificate they show.
CREATE TABLE IF NOT EXISTS removed_nodes (
    name VARCHAR(255) NOT NULL PRIMARY KEY,
    removed_at BIGINT NOT NULL
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;

-- How far each schedule has been fired, and which balancer fires it now. Seconds and milliseconds since 1970. Not
-- part of the feed.
CREATE TABLE IF NOT EXISTS schedules (
    trigger_id VARCHAR(26) NOT NULL PRIMARY KEY,
    tick_second BIGINT,
    claimed_by VARCHAR(320) NOT NULL,
    claimed_until BIGINT NOT NULL,
    CONSTRAINT schedules_of_trigger FOREIGN KEY (trigger_id) REFERENCES triggers (id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE /*M!100200 utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */;
