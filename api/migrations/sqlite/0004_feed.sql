-- One row: what tells this database from any other, and the feed's newest revision. Every process that shares the
-- file finds news by reading it.
CREATE TABLE feed (
    database_id VARCHAR(32) NOT NULL,
    revision BIGINT NOT NULL
);

INSERT INTO feed (database_id, revision)
SELECT lower(hex(randomblob(16))), COALESCE((SELECT MAX(revision) FROM changes), 0);
